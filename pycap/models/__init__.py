"""The models: VGG image encoders and the joint captioner of the ImageCLEF paper."""
