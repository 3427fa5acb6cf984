"""The effect model: click, conversion, sales and margin of an action on a user, with honest intervals."""
