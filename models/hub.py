"""SiT on the Hugging Face Hub, as config.json, model.safetensors and a model card.

from models.hub import HubSiT; HubSiT.from_pretrained("OWNER/NAME")
"""

from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor

from .checkpoints import load
from .sit import SiT

CARD = """---
{{ card_data }}
---

# {{ title | default("SiT", true) }}

```python
from models.hub import HubSiT

model = HubSiT.from_pretrained("OWNER/NAME")  # or the folder that this card lies in
velocity = model(x, t, y).pred  # x (B, C, *axes), t (B,) from 0, noise, to 1, data
```
{% if facts %}
| | |
|---|---|
{%- for name, value in facts.items() %}
| {{ name }} | {{ value }} |
{%- endfor %}
{% endif %}
A SiT ([arXiv 2401.08740](https://arxiv.org/abs/2401.08740)) of the LayerSync codebase
([arXiv 2510.12581](https://arxiv.org/abs/2510.12581)).
"""


class HubSiT(
    SiT, PyTorchModelHubMixin, library_name="layersync", license="mit",
    tags=["layersync", "sit", "flow-matching"], model_card_template=CARD,
):  # fmt: skip
    """A SiT with `from_pretrained`, `save_pretrained` and `push_to_hub`.

    `model_card_kwargs=dict(title=..., facts={...})` of the latter two fill in the card.
    """

    @classmethod
    def of(
        cls, weights: dict[str, Tensor], config: dict[str, Any] | None = None,
        args: dict[str, Any] | None = None, reversed_time: bool = False,
    ) -> "HubSiT":  # fmt: skip
        """From a checkpoint, as `models.load` takes it.

        Raises:
            ValueError: they are not a SiT's.
        """
        found = load(weights, config, args=args, reversed_time=reversed_time)
        if not isinstance(found, SiT):
            raise ValueError(f"they are of a {type(found).__name__}, and not of a SiT")
        model = cls(**found.config, class_dropout_prob=0.0)
        model.load_state_dict(found.state_dict())
        return model

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> "HubSiT":
        return super()._from_pretrained(strict=strict, **options)

    @classmethod
    def _load_as_pickle(cls, *_: Any) -> "HubSiT":
        raise ValueError("it has no model.safetensors, and pickles are not read")
