"""Paged attention back ends behind one interface; see `interface.py`."""
