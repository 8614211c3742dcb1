"""Source to wheel: recipes, source trees, builders."""
