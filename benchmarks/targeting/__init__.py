"""Who is contacted and what they are offered, judged in the market's truth."""
