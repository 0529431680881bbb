"""The models: VGG, the joint captioner of the ImageCLEF paper, and the captioner that wraps a trained one for use."""
