"""Configuration: YAML files and command-line words to checked, frozen configs."""
