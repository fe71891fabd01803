"""What fits where: the plan in numbers, and the modules placed by it."""
