"""From a Hugging Face directory, hub id or GGUF file to a model directory. Needs neither torch nor MLX."""
