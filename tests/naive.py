"""Each primitive once more, as plain Python loops over scalars: slow, and simple enough to be right by reading."""

from __future__ import annotations

import math

import numpy as np


def conv2d(x, w, b, stride, padding, relu):
    n_images, height, width, channels = x.shape
    filters, r, s, _ = w.shape
    p, q = (height + 2 * padding - r) // stride + 1, (width + 2 * padding - s) // stride + 1
    y = np.zeros((n_images, p, q, filters))
    for n in range(n_images):
        for i in range(p):
            for j in range(q):
                for k in range(filters):
                    total = 0.0 if b is None else float(b[k])
                    for di in range(r):
                        for dj in range(s):
                            row, column = i * stride + di - padding, j * stride + dj - padding
                            if 0 <= row < height and 0 <= column < width:
                                for c in range(channels):
                                    total += float(x[n, row, column, c]) * float(w[k, di, dj, c])
                    y[n, i, j, k] = max(total, 0.0) if relu else total
    return y


def round_to_bfloat16(x):
    """Each float32 as the nearest number with 8 significant bits; of two equally near ones that with an even last bit."""
    y = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        value = float(x[i])
        if not math.isfinite(value) or value == 0:
            y[i] = value
            continue
        exponent = max(math.frexp(value)[1], -125)  # below, numbers are denormal: the step stays the same
        step = math.ldexp(1.0, exponent - 8)
        y[i] = math.copysign(round(value / step) * step, value)
        if abs(y[i]) >= 2.0**128:
            y[i] = math.copysign(math.inf, value)
    return y


def maxpool(x):
    """(y, argmax): the 2-bit winners packed four channels to a byte, channel k in bits 2*(k%4) of byte k//4."""
    n_images, height, width, channels = x.shape
    y = np.zeros((n_images, height // 2, width // 2, channels))
    argmax = np.zeros((n_images, height // 2, width // 2, (channels + 3) // 4), np.uint8)
    for n in range(n_images):
        for i in range(height // 2):
            for j in range(width // 2):
                for k in range(channels):
                    best, winner = -math.inf, 0
                    for position in range(4):
                        value = x[n, 2 * i + position // 2, 2 * j + position % 2, k]
                        if value > best:
                            best, winner = value, position
                    y[n, i, j, k] = best
                    argmax[n, i, j, k // 4] |= winner << (2 * (k % 4))
    return y, argmax


def maxpool_backward(dy, argmax, shape):
    dx = np.zeros(shape)
    for n, i, j, k in np.ndindex(dy.shape):
        winner = (int(argmax[n, i, j, k // 4]) >> (2 * (k % 4))) & 3
        dx[n, 2 * i + winner // 2, 2 * j + winner % 2, k] += dy[n, i, j, k]
    return dx


def linear(x, w, b, relu):
    y = np.zeros((x.shape[0], w.shape[0]))
    for m in range(x.shape[0]):
        for o in range(w.shape[0]):
            total = (0.0 if b is None else float(b[o])) + sum(
                float(x[m, i]) * float(w[o, i]) for i in range(x.shape[1])
            )
            y[m, o] = max(total, 0.0) if relu else total
    return y


def hash32(counter, seed):
    """The counter-based random number of dropout, on Python integers."""

    def mix(v):
        v ^= v >> 16
        v = v * 0x7FEB352D % 2**32
        v ^= v >> 15
        v = v * 0x846CA68B % 2**32
        return v ^ v >> 16

    return mix(mix((counter + seed % 2**32) % 2**32) ^ (seed >> 32) % 2**32)


def dropout(x, p, seed, total, offset):
    y = np.zeros(x.shape)
    steps, n_rows, features = x.shape
    for t in range(steps):
        for i in range(n_rows):
            for f in range(features):
                counter = ((t * total + offset + i) * features + f) % 2**32
                if hash32(counter, seed) >= math.floor(p * 2**32):
                    y[t, i, f] = x[t, i, f] / (1 - p)
    return y


def embedding(table, ids):
    nothing = [0.0] * table.shape[1]
    rows = [[float(v) for v in table[i]] if i >= 0 else nothing for i in ids]
    return np.array(rows).reshape(len(ids), table.shape[1])


def embedding_backward(dtable, dy, ids, beta):
    out = [[float(v) * beta if beta else 0.0 for v in row] for row in dtable]
    for m, i in enumerate(ids):
        for e in range(dy.shape[1] if i >= 0 else 0):
            out[i][e] += float(dy[m, e])
    return np.array(out)


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def lstm(x, h0, c0, w_x, w_h, b, mask):
    """(h [T,N,H], c [T,N,H], gates [T,N,4H]); the gates of masked steps are left at 0."""
    steps, n_rows, features = x.shape
    hidden = w_h.shape[1]
    h, c, gates = (
        np.zeros((steps, n_rows, hidden)),
        np.zeros((steps, n_rows, hidden)),
        np.zeros((steps, n_rows, 4 * hidden)),
    )
    for n in range(n_rows):
        h_prev = [0.0] * hidden if h0 is None else [float(v) for v in h0[n]]
        c_prev = [0.0] * hidden if c0 is None else [float(v) for v in c0[n]]
        for t in range(steps):
            if mask is None or mask[t, n]:
                z = [
                    float(b[j])
                    + sum(float(w_x[j, k]) * float(x[t, n, k]) for k in range(features))
                    + sum(float(w_h[j, k]) * h_prev[k] for k in range(hidden))
                    for j in range(4 * hidden)
                ]
                i, f, o = ([sigmoid(v) for v in z[k * hidden : (k + 1) * hidden]] for k in (0, 1, 3))
                g = [math.tanh(v) for v in z[2 * hidden : 3 * hidden]]
                gates[t, n] = i + f + g + o
                c_prev = [f[k] * c_prev[k] + i[k] * g[k] for k in range(hidden)]
                h_prev = [o[k] * math.tanh(c_prev[k]) for k in range(hidden)]
            h[t, n], c[t, n] = h_prev, c_prev
    return h, c, gates


def linear_xent(h, w, b, targets):
    """(loss [M], dlogits [M,V])."""
    loss, dlogits = np.zeros(len(targets)), np.zeros((len(targets), w.shape[0]))
    for m, target in enumerate(targets):
        logits = [
            float(b[v]) + sum(float(h[m, k]) * float(w[v, k]) for k in range(h.shape[1])) for v in range(w.shape[0])
        ]
        top = max(logits)
        total = sum(math.exp(z - top) for z in logits)
        loss[m] = math.log(total) + top - logits[target]
        for v, z in enumerate(logits):
            dlogits[m, v] = math.exp(z - top) / total - (1.0 if v == target else 0.0)
    return loss, dlogits


def log_softmax_topk(logits, k, suppress):
    values, indices = np.zeros((len(logits), k)), np.zeros((len(logits), k), np.int32)
    for m, row in enumerate(logits):
        allowed = [v for v in range(len(row)) if v not in suppress]
        top = max(float(row[v]) for v in allowed)
        log_total = top + math.log(sum(math.exp(float(row[v]) - top) for v in allowed))
        ranked = sorted(allowed, key=lambda v: (-float(row[v]), v))[:k]
        values[m], indices[m] = [float(row[v]) - log_total for v in ranked], ranked
    return values, indices


def preprocess(x, crops, size, scale, shift):
    height, width = size
    y = np.zeros((len(x), height, width, 3))
    for n, (top, left, flip) in enumerate(crops):
        for i in range(height):
            for j in range(width):
                column = left + (width - 1 - j if flip else j)
                for c in range(3):
                    y[n, i, j, c] = float(x[n, top + i, column, c]) * float(scale[c]) + float(shift[c])
    return y


def effective_gradient(p, g, weight_decay, grad_scale, clip):
    g = g * grad_scale
    if clip:
        g = min(max(g, -clip), clip)
    return g + weight_decay * p


def sgd(p, g, m, lr, momentum, weight_decay, grad_scale, clip):
    """One scalar: (new p, new m)."""
    m = momentum * m + effective_gradient(p, g, weight_decay, grad_scale, clip)
    return p - lr * m, m


def rmsprop(p, g, v, lr, alpha, eps, weight_decay, grad_scale, clip):
    """One scalar: (new p, new v)."""
    g = effective_gradient(p, g, weight_decay, grad_scale, clip)
    v = alpha * v + (1 - alpha) * g * g
    return p - lr * g / (math.sqrt(v) + eps), v


def adam(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step, grad_scale, clip):
    """One scalar: (new p, new m, new v); Kingma & Ba 2015, algorithm 1, with weight decay added to the gradient."""
    g = effective_gradient(p, g, weight_decay, grad_scale, clip)
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * m_hat / (math.sqrt(v_hat) + eps), m, v
