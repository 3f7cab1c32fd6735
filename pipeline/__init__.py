"""World Models (Ha & Schmidhuber 2018): everything that is not Ray."""
