"""What a run will take: time, money and memory, before it begins."""
