"""World Models (Ha & Schmidhuber 2018): all code without Ray, except the reference of a bench."""
