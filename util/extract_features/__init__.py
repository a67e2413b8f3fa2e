"""Extract features of images and videos, or convert features that exist, to the data's layout."""
