"""Into peft and transformers, and back."""
