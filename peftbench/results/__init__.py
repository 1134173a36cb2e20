"""Records of runs and the table derived from them; imports neither torch nor timm."""
