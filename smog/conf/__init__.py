"""The YAML of the recipes, data sets, backbones and methods."""
