from . import shapes as shapes  # where --jaxtyping-packages finds it
