"""From a DeepSpeed checkpoint to one folder in Hugging Face layout."""
