"""A step of beam search: which beams of each image go on, and which sentences have ended (docs/math/beam.md)."""

import triton
import triton.language as tl


@triton.jit
def _total(scores, values, at, candidates, wide):
    """The log-probabilities, in float64, of an image's candidates at these places; -inf for those past the end and for what
    is not a number. Candidate b * wide + j: beam b, and its j-th best word."""
    inside = at < candidates
    before = tl.load(scores + at // wide, mask=inside, other=-float("inf"))
    total = before + tl.load(values + at, mask=inside, other=0.0).to(tl.float64)
    return tl.where(total == total, total, -float("inf"))


@triton.jit
def select(
    words,  # [n * k]
    parents,  # [n * k]
    scores,  # [n, k]
    steps,  # [n]
    done,  # [n]
    finished,  # [2, n, k]
    origins,  # [2, n, k]
    history,  # [2, most, n, k]
    values,  # [n * k, wide]
    indices,  # [n * k, wide]
    penalties,  # [most + 1]
    k,
    wide,
    most,
    end,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    BEAMS: tl.constexpr,
):
    """One program an image: it ranks all candidates at once, by counting how many come before each.

    BLOCK: a power of two, at least k * wide, compared CHUNK at a time. BEAMS: a power of two, at least k.
    """
    image, n = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    step = tl.load(steps + image)
    was_done = tl.load(done + image)
    runs = (was_done == 0) & (step < most)
    candidates = k * wide
    words += image * k
    parents += image * k
    scores += image * k
    values += image * candidates
    indices += image * candidates

    at = tl.arange(0, BLOCK)
    total = _total(scores, values, at, candidates, wide)
    word = tl.load(indices + at, mask=at < candidates, other=0)
    live = total > -float("inf")
    rank = tl.zeros((BLOCK,), tl.int32)  # how many candidates come before this one
    ends_before = tl.zeros((BLOCK,), tl.int32)  # how many of those are ends
    for first in range(0, candidates, CHUNK):
        other_at = first + tl.arange(0, CHUNK)
        other = _total(scores, values, other_at, candidates, wide)[None, :]
        is_end = tl.load(indices + other_at, mask=other_at < candidates, other=0)[None, :] == end
        equal_before = (other == total[:, None]) & (other_at[None, :] < at[:, None])
        before = (other > total[:, None]) | equal_before
        rank += tl.sum(before.to(tl.int32), 1)
        ends_before += tl.sum((before & is_end).to(tl.int32), 1)
    place = rank - ends_before
    goes_on = live & (word != end) & (place < k)
    ended = live & (word == end) & (rank < tl.where(runs, k, 0))

    # The finished, old and new, find their places by counting too; of equal ones the old come first.
    slot = tl.arange(0, BEAMS)
    there = slot < k
    old = finished + image * k + slot
    old_score = tl.load(old, mask=there, other=-float("inf"))
    old_logprob = tl.load(old + n * k, mask=there, other=0.0)
    origin = origins + image * k
    old_step = tl.load(origin + slot, mask=there, other=0)
    old_beam = tl.load(origin + n * k + slot, mask=there, other=0)
    score = tl.where(ended, total / tl.load(penalties + tl.minimum(step, most)), -float("inf"))
    new_place = ends_before + tl.sum((old_score[None, :] >= score[:, None]).to(tl.int32), 1)
    old_place = slot + tl.sum((score[:, None] > old_score[None, :]).to(tl.int32), 0)
    last_old = tl.max(tl.where(there & (old_place == k - 1), old_score, -float("inf")), 0)
    last_new = tl.max(tl.where(ended & (new_place == k - 1), score, -float("inf")), 0)

    # Log-probabilities only fall, and length helps up to the longest sentence.
    best = tl.max(tl.where(goes_on, total, -float("inf")), 0)
    settled = best / tl.load(penalties + most) <= tl.maximum(last_old, last_new)
    on = runs & (best > -float("inf")) & (settled == 0)
    filled = tl.sum(goes_on.to(tl.int32), 0)
    first_beam = tl.sum(tl.where(goes_on & (place == 0), at // wide, 0), 0)
    first_word = tl.sum(tl.where(goes_on & (place == 0), word, 0), 0)

    tl.debug_barrier()  # all threads have read what is written now
    moved = there & (old_place < k)
    tl.store(finished + image * k + old_place, old_score, mask=moved)
    tl.store(finished + (n + image) * k + old_place, old_logprob, mask=moved)
    tl.store(origin + old_place, old_step, mask=moved)
    tl.store(origin + n * k + old_place, old_beam, mask=moved)
    added = ended & (new_place < k)
    tl.store(finished + image * k + new_place, score, mask=added)
    tl.store(finished + (n + image) * k + new_place, total, mask=added)
    tl.store(origin + new_place, tl.zeros((BLOCK,), tl.int32) + step, mask=added)
    tl.store(origin + n * k + new_place, at // wide, mask=added)

    # The next beams; where fewer than k go on, the first one stands in, with no chance.
    going = tl.where(on, k, 0)
    kept, rest = goes_on & (place < going), (slot >= filled) & (slot < going)
    past = history + (step.to(tl.int64) * n + image) * k
    first_row = (image * k).to(tl.int32)
    tl.store(words + place, word, mask=kept)
    tl.store(words + slot, tl.zeros((BEAMS,), tl.int32) + first_word, mask=rest)
    tl.store(scores + place, total, mask=kept)
    tl.store(scores + slot, tl.full((BEAMS,), -float("inf"), tl.float64), mask=rest)
    tl.store(parents + place, first_row + at // wide, mask=kept)
    tl.store(parents + slot, tl.zeros((BEAMS,), tl.int32) + first_row + first_beam, mask=rest)
    tl.store(parents + slot, first_row + slot, mask=there & (slot >= going))
    tl.store(past + place, at // wide, mask=kept)
    tl.store(past + slot, tl.zeros((BEAMS,), tl.int32) + first_beam, mask=rest)
    past += most * n * k
    tl.store(past + place, word, mask=kept)
    tl.store(past + slot, tl.zeros((BEAMS,), tl.int32) + first_word, mask=rest)
    tl.store(steps + image, step + on.to(tl.int32))
    tl.store(done + image, (was_done | (runs & (on == 0)).to(tl.uint8)).to(tl.uint8))
