"""Tiny random models of every architecture that is computed end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "conv_kernel_size": 3,
    "conv_act": "gelu",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
FORMS: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1},
    "electra": {"embedding_size": 16},
    "mpnet": {"pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48},
    "albert": {"embedding_size": 16, "num_hidden_groups": 2, "hidden_act": "gelu_new"},
    "deberta-v2": DEBERTA,
    "deberta-v2 without buckets": {
        **DEBERTA,
        "position_buckets": -1,
        "share_att_key": False,
        "pos_att_type": ["c2p"],
        "conv_kernel_size": 0,
        "position_biased_input": True,
    },
    "modernbert": {"local_attention": 16, "global_attn_every_n_layers": 2, "pad_token_id": 49, "cls_token_id": 1},
    "modernbert with biases": {
        "local_attention": 300,
        "max_position_embeddings": 40,
        "pad_token_id": 49,
        "attention_bias": True,
        "mlp_bias": True,
        "norm_bias": True,
    },
    "nomic_bert": {"pad_token_id": 0},
    "gte": {"pad_token_id": 0, "type_vocab_size": 0},
    "jina_embeddings_v3": {"pad_token_id": 0},
}
# The lowest transformers lacks the last three.
FORMS = {form: options for form, options in FORMS.items() if form.split()[0] in transformers.CONFIG_MAPPING}
GPU_FORMS = [form for form in FORMS if form.split()[0] not in ("modernbert", "nomic_bert", "gte", "jina_embeddings_v3")]


def tiny_model(form: str, dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    options: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 600,
        **FORMS[form],
        **changed,
    }
    config = transformers.AutoConfig.for_model(form.split()[0], **options)
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # fresh biases and norms would hide a wrong one
            parameter.normal_(std=0.3)
    for parameter in model.parameters():  # not the buffers, as when an encoder is loaded
        parameter.data = parameter.data.to(dtype)
    return model


def random_texts(lengths: np.ndarray) -> list[np.ndarray]:
    """Token ids of texts of these lengths."""
    generator = np.random.default_rng(0)
    return [generator.integers(3, 50, size=length) for length in lengths]


def own_states(model: Any, texts: list[np.ndarray]) -> list[torch.Tensor]:
    """(T, depth + 1, D) of each text by transformers, one text at a time."""
    with torch.inference_mode():
        outputs = [model(torch.from_numpy(ids)[None], output_hidden_states=True) for ids in texts]
    return [torch.stack(output.hidden_states, 2)[0].float() for output in outputs]
