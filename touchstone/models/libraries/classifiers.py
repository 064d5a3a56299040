"""The classifiers of transformers that are built, by name. Never imports torch.

A configuration only chooses among them. Others are left out because they take something else than one image
of a fixed size, or need a further package.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CLASSIFIERS: Mapping[str, str] = MappingProxyType(
    {
        "BeitForImageClassification": "beit",
        "BitForImageClassification": "bit",
        "CLIPForImageClassification": "clip",
        "ConvNextForImageClassification": "convnext",
        "ConvNextV2ForImageClassification": "convnextv2",
        "CvtForImageClassification": "cvt",
        "Data2VecVisionForImageClassification": "data2vec-vision",
        "DeiTForImageClassification": "deit",
        "DeiTForImageClassificationWithTeacher": "deit",
        "Dinov2ForImageClassification": "dinov2",
        "Dinov2WithRegistersForImageClassification": "dinov2_with_registers",
        "EfficientNetForImageClassification": "efficientnet",
        "FocalNetForImageClassification": "focalnet",
        "HieraForImageClassification": "hiera",
        "IJepaForImageClassification": "ijepa",
        "LevitForImageClassification": "levit",
        "LevitForImageClassificationWithTeacher": "levit",
        "MobileNetV1ForImageClassification": "mobilenet_v1",
        "MobileNetV2ForImageClassification": "mobilenet_v2",
        "MobileViTForImageClassification": "mobilevit",
        "MobileViTV2ForImageClassification": "mobilevitv2",
        "PoolFormerForImageClassification": "poolformer",
        "PvtForImageClassification": "pvt",
        "PvtV2ForImageClassification": "pvt_v2",
        "RegNetForImageClassification": "regnet",
        "ResNetForImageClassification": "resnet",
        "SegformerForImageClassification": "segformer",
        "SiglipForImageClassification": "siglip",
        "SwiftFormerForImageClassification": "swiftformer",
        "SwinForImageClassification": "swin",
        "Swinv2ForImageClassification": "swinv2",
        "ViTForImageClassification": "vit",
        "ViTMSNForImageClassification": "vit_msn",
    }
)
"""Names of classes, with the `model_type` of their configurations."""
