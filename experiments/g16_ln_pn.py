"""G16-EfficientNet with layer norm and proxy-normalised activations: the paper's network.

"Making EfficientNet More Efficient", arXiv 2106.03640; the norm: arXiv 2106.03743.
Expect: top-1 at native resolution after fine-tuning, B0..B5: 79.42 81.34 81.81 82.63 83.39 84.06 %
(readings off the published summary figure, about 0.03 %). At half resolution: 78.30 80.50 81.18 81.98 83.00 83.81 %.
On CIFAR-10 (docs/ablation.md): 80.8 %, TINY at width 0.25 and depth 0.3, 30 epochs, three seeds;
85.5 %, CIFAR at the same, one seed, float32.
Hardware: the paper trains on 16 IPUs. `--mode=costs` estimates speeds, for this machine too.
Run: launch.py --experiment=g16_ln_pn:variant=B0,resolution=native
     (variant B0 to B7; resolution native or half; `small` for small sets, `demo` for the embedded digits)

The other experiments start from this one and change their lines.
"""

from g16net import config as config_lib

# Mixing by variant, as published (larger networks are regularised more): alpha of mixup, lambda of CutMix.
MIXING = {"B0": (0.1, 1.0), "B1": (0.1, 0.95), "B2": (0.1, 0.9), "B3": (0.2, 0.9), "B4": (0.2, 0.85), "B5": (0.2, 0.8)}
MIXING["B6"] = MIXING["B7"] = MIXING["B5"]  # not published: as the largest published size


def get_config(arg=""):
    args = config_lib.parse_arg(arg, variant="", resolution="native", small=False, demo=False)
    config = config_lib.default()

    config.run.seed = 42
    config.run.epochs = 350  # as published, for all sizes
    config.run.global_batch = 768  # images per weight update, as published

    # Data: ImageNet-1k where it is prepared. None: derived, by `recipe.resolve`.
    config.data.name = "auto"
    config.data.resolution = args.resolution  # half: about half the pixels, fine-tuned at native afterwards (section 3)
    config.data.train_size = None  # pixels, of the variant: 224 for B0 at native resolution, 160 at half
    config.data.eval_size = None  # pixels, of the variant at native resolution
    config.data.crop = "box"  # a random part of the image, resized
    config.data.area_min = 0.05  # of the image's area, at least
    config.data.flip = True
    config.model.mean = (123.68, 116.78, 103.94)  # of ImageNet's training images; no division by their deviation

    # Model: groups of 16 channels in place of depthwise convolutions, and a smaller expansion to pay for them
    config.model.variant = args.variant or ("CIFAR" if args.demo else "B0")
    config.model.group_size = 16
    config.model.expand_ratio = 4  # 6 in depthwise networks
    config.model.norm = "ln_pn"
    config.model.activation = None  # the variant's: swish, of the Lite ones relu6
    config.model.norm_epsilon = 1e-3
    config.model.proxy_epsilon = 0.03

    # Optimizer: TensorFlow 1's RMSProp. None: as said beside it, and for another optimizer what suits that
    config.optim.name = "rmsprop"
    config.optim.learning_rate = None  # 2^-14 x run.global_batch: 0.047 at 768
    config.optim.decay = None  # 1 - 2^-14 x run.global_batch, of the mean square: 0.953 at 768
    config.optim.momentum = 0.9
    config.optim.epsilon = None  # 1e-3, inside the root
    config.optim.weight_decay = None  # 1e-5, L2 of all but the scales and shifts of norms

    config.schedule.name = "exponential"
    config.schedule.warmup_epochs = 5.0
    config.schedule.drops = 146  # every 2.4 epochs
    config.schedule.drop_rate = 0.97

    config.data.mixup, config.data.cutmix = MIXING.get(config.model.variant, (0.0, 1.0))
    config.regularise.label_smoothing = 0.1
    config.regularise.dropout = None  # the variant's: 0.2 for B0 and B1, 0.3 for B2 and B3, 0.4 for B4 and B5
    config.regularise.survival_prob = 0.8  # of the last block; falls linearly from 1 at the first
    config.regularise.average = 0.97  # per epoch

    config.eval.weights = "average"

    # Fine-tuning, by --mode=finetune: the last layer at the test size, after training at another
    config.finetune.layers = "top"
    config.finetune.epochs = 2
    config.finetune.learning_rate = None  # 2^-11 x finetune.global_batch

    if args.small or args.demo:
        small(config)
    if args.demo:
        demo(config)
    return config


def small(config):
    """For sets of hundreds to thousands of images. Some hundred updates are too few for an average of 0.97 per epoch, 5
    epochs of warm-up or a mean square of 0.998. SGD: see docs/training.md."""
    config.run.epochs = 30
    config.run.global_batch = 32
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.05
    config.optim.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0
    config.regularise.average = 0.5
    config.finetune.optimizer = "rmsprop"
    config.finetune.decay = 0.9


def demo(config):
    """Minutes on two CPU cores: scikit-learn's digits, which have no mirror images."""
    config.data.name = "digits"
    config.data.crop = "pad"
    config.data.flip = False
    config.data.mixup, config.data.cutmix = 0.0, 1.0
    config.run.epochs = 15
    config.optim.name, config.optim.learning_rate, config.optim.decay = "rmsprop", 0.01, 0.9
    config.optim.weight_decay = None
    config.eval.batch = 120  # 359 test images are three
