"""What the report shows, and how: figures of a run beside the published ones, on one self-contained page."""
