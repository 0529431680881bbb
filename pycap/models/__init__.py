"""The models: VGG image encoders, the captioners NIC (of the ImageCLEF paper) and Merge, a classifier of images."""
