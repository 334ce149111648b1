"""A tiny Marian translation model on disk."""

import io
import json
from pathlib import Path

import torch
from transformers import MarianConfig, MarianMTModel

TEXTS = ["the X1 is left of the X2", "X2 has an X1 on its left", "猫在狗的左边 X3", "a cat and a dog"]


def write_marian(folder: Path, seed: int = 2, ending: float = 3.0) -> Path:
    """A Marian model of one layer with random weights, as transformers saves them.

    The larger `ending`, the sooner its translations end.
    """
    import sentencepiece

    folder.mkdir(parents=True)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 10), model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    names = [pieces.id_to_piece(i) for i in range(3, pieces.get_piece_size())]
    vocabulary = {name: i for i, name in enumerate(["</s>", "<unk>", *names, ">>fra<<", ">>cmn_Hans<<", "<pad>"])}
    for side in ("source", "target"):
        (folder / f"{side}.spm").write_bytes(model.getvalue())
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"source_lang": "en", "target_lang": "zh"}')
    width = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    padding = {"pad_token_id": vocabulary["<pad>"], "decoder_start_token_id": vocabulary["<pad>"]}
    ends = {"eos_token_id": 0, "forced_eos_token_id": 0, "num_beams": 2}
    settings = {"vocab_size": len(vocabulary), "max_position_embeddings": 48} | width | heads | padding | ends
    torch.manual_seed(seed)
    model = MarianMTModel(MarianConfig(**(settings | {"init_std": 1.0})))
    model.final_logits_bias[0, 0] = ending
    model.save_pretrained(folder)
    return folder
