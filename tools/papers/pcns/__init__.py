"""The drafts on principal component network shrinking (PCNS)."""
