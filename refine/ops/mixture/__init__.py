"""A mixture of experts: which experts a token goes to (routing.py), and what they make of it (experts.py)."""
