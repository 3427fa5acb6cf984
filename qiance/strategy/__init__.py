"""From a brief to strategies: audiences, promotions, recommendations and words."""
