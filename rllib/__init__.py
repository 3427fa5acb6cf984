"""The market as an environment, and pacing policies trained on it with RLlib."""
