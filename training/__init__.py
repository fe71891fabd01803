"""The recipe of the embedded model uso-tiny: a toy world, the parts, their training and their measures."""
