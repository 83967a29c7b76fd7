"""Tables of results, from result.json files alone."""
