"""Every model of torchvision, and many of timm and transformers: traced, certified and changed; see docs/zoo.md."""
