"""Where the segments of a read lie: for all steps, and moved to a device at once."""

from __future__ import annotations

import torch

from refine.ops.delta_rule.chunks import Chunks
from refine.ops.delta_rule.segments import Steps, segment_lengths, segment_order
from refine.ops.layout import Layout
from tests.fixtures.pretended_device import DEVICE, Watch

CPU = torch.device("cpu")
LENGTHS = [[128, 128, 70], [128, 128], [44]]  # of documents of 300, 256 and 70 tokens, read in segments of 128


def test_steps_say_where_their_segments_tokens_and_chunks_lie():
    steps = Steps.of(LENGTHS, CPU)
    assert [step.segments for step in steps.every] == [slice(0, 3), slice(3, 5), slice(5, 6)]
    assert [step.tokens for step in steps.every] == [slice(0, 326), slice(326, 582), slice(582, 626)]
    assert [step.chunks for step in steps.every] == [slice(0, 6), slice(6, 10), slice(10, 11)]
    assert steps.cuts.cu_seqlens.tolist() == [0, 128, 256, 326, 454, 582, 626]
    assert steps.cuts.chunk_offsets.tolist() == [0, 2, 4, 6, 8, 10, 11]
    assert steps.every[0].cuts.chunk_indices.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert steps.every[2].cuts.cu_seqlens.tolist() == [0, 44]


def test_the_cuts_of_all_steps_go_to_a_device_together():
    with Watch() as watch:
        steps = Steps.of([[512, 65]] * 31 + [[7]], DEVICE)
        cuts = [steps.cuts, *(step.cuts for step in steps.every)]
        assert all(x.data_ptr() % 16 == 0 for one in cuts for x in vars(one).values()), "or kernels are compiled again"
    assert sum(watch.copies.values()) == 1 and not watch.synchronisations


def test_steps_are_those_of_a_layout_s_documents():
    chunks = Chunks.of(Layout([300, 70, 256]), 128)
    assert segment_lengths(chunks) == [[128, 128, 70], [128, 128], [44]]
    order = segment_order(chunks)
    assert order is not None and sorted(order.tolist()) == list(range(626))
    assert order[:129].tolist() == [*range(128), 370], "the first segments: of documents 0, 2 and 1"
    assert segment_order(Chunks.of(Layout([5, 5]), 128)) is None
