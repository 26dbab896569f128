"""Race hunting: one compiled kernel under many schedules, intact and with planted mistakes. Start with hunt.py."""
