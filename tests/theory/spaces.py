"""Finite spaces for the tests of the theory, seeded by name; none was picked by its outcome."""

import zlib

import numpy as np
from scipy.special import softmax

NAMES = ["ash", "birch", "cedar", "elm", "fir"]
LABELLED = ["bradley_terry", "squared", "group_log_variance", "imitation", "direct"]
POLICIES = ["all", "correct", "improving", "oriented"]
EXACT = 1e-10


def generator(name):
    return np.random.default_rng(zlib.crc32(name.encode()))


def space(name, size=5):
    """Teacher, student, reward in [0, 1], beta in [0.3, 1.3], reward scale in [0.5, 2]."""
    rng = generator(name)
    teacher, student = softmax(rng.normal(size=(2, size)), axis=1)
    return teacher, student, rng.uniform(size=size), 0.3 + rng.uniform(), rng.uniform(0.5, 2.0)


def shifted_space(name, size=5):
    """Student, context shift of the teacher's logits, and the rest as `space`."""
    rng = generator(name)
    student, shift = softmax(rng.normal(size=size)), rng.normal(size=size)
    return student, shift, rng.uniform(size=size), 0.3 + rng.uniform(), rng.uniform(0.5, 2.0)


def three_levels(name):
    student, shift, _, beta, scale = shifted_space(name)
    reward = np.array([1.0, 0.0, 0.5, 1.0, 0.0])
    return student, shift, reward, beta, scale, (reward == 1.0).astype(float)


def tilt(policy, exponent):
    weight = policy * np.exp(exponent - np.max(exponent))
    return weight / weight.sum()
