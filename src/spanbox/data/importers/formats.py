"""The formats that `spanbox data import` reads, by name. Twitter-GMNER has a separate command with other options."""

from typing import NamedTuple

from spanbox.data.importers.arrow import huggingface, parquet
from spanbox.data.importers.captions import any_json, flickr8k, table
from spanbox.data.importers.coco import coco, refcoco
from spanbox.data.importers.driver import Importer
from spanbox.data.importers.flickr30k import flickr30k_entities
from spanbox.data.importers.tars import webdataset
from spanbox.data.importers.visual_genome import visual_genome


class Format(NamedTuple):
    """An importer, with a description of the files that it expects in SRC."""

    importer: Importer
    title: str
    expects: str


FORMATS = {
    "flickr30k-entities": Format(
        flickr30k_entities,
        "Flickr30k Entities",
        "Sentences/ID.txt, Annotations/ID.xml, and train.txt, val.txt, test.txt; images in flickr30k-images",
    ),
    "coco": Format(
        coco,
        "COCO captions with instances",
        "annotations/captions_SPLIT.json and instances_SPLIT.json; images in SPLIT, as in train2017",
    ),
    "visual-genome": Format(
        visual_genome,
        "Visual Genome regions",
        "region_descriptions.json, image_data.json, objects.json (1.0 or later); images in VG_100K and VG_100K_2",
    ),
    "refcoco": Format(
        refcoco,
        "RefCOCO, RefCOCO+, RefCOCOg",
        "refs(SPLIT_BY).p or .json, and instances.json; images in train2014, or --images",
    ),
    "flickr8k": Format(
        flickr8k,
        "Flickr8k captions",
        "Flickr8k.token.txt or captions.txt; images in Flicker8k_Dataset, Images or beside it",
    ),
    "table": Format(
        table, "CSV or TSV tables", "a file with a header; columns image and text, or those that --spec names"
    ),
    "json": Format(any_json, "JSON or JSON Lines", "a file of records, and --spec FILE.yaml, which names their fields"),
    "parquet": Format(
        parquet,
        "Parquet files",
        "a .parquet file or a folder of them; columns image (bytes, {bytes, path} or a path) and text or caption, or "
        "those that --spec names; needs spanbox[parquet]",
    ),
    "huggingface": Format(
        huggingface,
        "Hugging Face datasets saved to disk",
        "a folder of Dataset.save_to_disk or DatasetDict.save_to_disk, or a .arrow file; columns as for parquet; needs "
        "spanbox[parquet]",
    ),
    "webdataset": Format(
        webdataset,
        "WebDataset tars",
        "a .tar or a folder of them: .jpg beside .json or .txt; images stay in their tars",
    ),
}
