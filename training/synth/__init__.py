"""Synthetic cohorts of users, how faithful they are, and what they give away of those they were made from."""
