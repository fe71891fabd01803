"""What an image costs: counts on any machine, seconds and bytes on this one."""
