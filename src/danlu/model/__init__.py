"""Model mathematics: backbones and heads. Knows no device, process group or environment."""
