"""The uplift model: from a log with several arms to the effect of each arm on each row."""
