"""Images in the order of the classes of a pretrained classifier."""

from rgd_hf.scripts.errors import UserError
from rgd_hf.scripts.training.class_order import in_order_of_model
from rgd_hf.scripts.vision.classes import readable_names
from rgd_hf.scripts.vision.data import ImageStream
from rgd_hf.scripts.vision.models import ImageModelArguments, classes_of_model
from rgd_hf.scripts.vision.sets import ImageSet

Images = ImageSet | ImageStream


def in_models_order(train: Images, validation: Images, args: ImageModelArguments) -> tuple[Images, Images]:
    """The images, their classes numbered as by the pretrained classifier that is trained further, if it has the same ones.

    Raises:
        UserError: they are streamed, and it numbers them in another way.
    """
    trained = classes_of_model(args)
    if trained is None or len(trained) != len(train.classes):
        return train, validation
    shown = readable_names(train.classes)
    ordered = in_order_of_model(str(args.model_name_or_path), trained, shown)
    if ordered == shown:
        return train, validation
    if isinstance(train, ImageStream) or isinstance(validation, ImageStream):
        raise UserError(
            f"{args.model_name_or_path} has the same classes as the data in another order, which streamed labels cannot be put "
            "into: leave out --streaming."
        )
    classes = [train.classes[shown.index(name)] for name in ordered]
    return train.in_order_of(classes), validation.in_order_of(classes)
