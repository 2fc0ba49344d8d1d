"""Image stores out of folders of images, with the backbones and detectors of torchvision."""
