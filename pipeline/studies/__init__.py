"""Studies: arms of a config times seeds, each a whole run, which share equal stages."""
