"""What of a model lies where: the plan in numbers, and the machine that it is made for."""
