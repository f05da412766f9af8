"""Models of Hugging Face read and written: configs, safetensors, the hub, PEFT adapters."""
