"""Baselines of tables that are no networks: gradient boosting and linear models, on the same encoded splits."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from rgd_hf.scripts.tabular.splits import Part, Splits

ROUNDS = 1000
PATIENCE = 30

Predict = Callable[[Part], np.ndarray]


def _trees_frame(part: Part) -> pd.DataFrame:
    """Numeric features as they are, codes as categories, under names that every library accepts."""
    frame = pd.DataFrame(part.x_num).add_prefix("n")
    codes = pd.DataFrame(part.x_cat).add_prefix("c")
    return pd.concat([frame, codes], axis=1)


def _fit_linear(splits: Splits, settings: dict[str, Any], seed: int) -> Predict:
    strength = settings.get("strength", 1.0)
    if splits.target.is_regression:
        model: Any = Ridge(alpha=1 / strength)
    else:
        model = LogisticRegression(C=strength, max_iter=500, random_state=seed)
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    codes = one_hot.fit_transform(splits.train.x_cat) if splits.train.x_cat.shape[1] else None
    pipeline = make_pipeline(StandardScaler(), model)

    def features(part: Part) -> np.ndarray:
        return part.x_num if codes is None else np.hstack([part.x_num, one_hot.transform(part.x_cat)])

    pipeline.fit(features(splits.train), splits.train.y)
    return lambda part: _predict(pipeline, features(part), splits)


def _fit_hist_gradient_boosting(splits: Splits, settings: dict[str, Any], seed: int) -> Predict:
    cls = HistGradientBoostingRegressor if splits.target.is_regression else HistGradientBoostingClassifier
    n_num, n_cat = splits.train.x_num.shape[1], splits.train.x_cat.shape[1]
    model = cls(
        learning_rate=settings.get("learning_rate", 0.1),
        max_leaf_nodes=settings.get("leaves", 31),
        min_samples_leaf=settings.get("min_leaf", 20),
        l2_regularization=settings.get("l2", 0.0),
        max_iter=ROUNDS,
        early_stopping=True,
        n_iter_no_change=PATIENCE,
        categorical_features=[False] * n_num + [True] * n_cat if n_cat else None,
        random_state=seed,
    )
    train, validation = (np.hstack([part.x_num, part.x_cat]) for part in (splits.train, splits.validation))
    model.fit(train, splits.train.y, X_val=validation, y_val=splits.validation.y)
    return lambda part: _predict(model, np.hstack([part.x_num, part.x_cat]), splits)


def _fit_lightgbm(splits: Splits, settings: dict[str, Any], seed: int) -> Predict:
    import lightgbm

    cls = lightgbm.LGBMRegressor if splits.target.is_regression else lightgbm.LGBMClassifier
    model = cls(
        n_estimators=ROUNDS,
        learning_rate=settings.get("learning_rate", 0.1),
        num_leaves=settings.get("leaves", 31),
        min_child_samples=settings.get("min_leaf", 20),
        reg_lambda=settings.get("l2", 0.0),
        random_state=seed,
        n_jobs=torch.get_num_threads(),
        verbosity=-1,
    )
    train, validation = _trees_frame(splits.train), _trees_frame(splits.validation)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the newest versions call eval_set otherwise, older ones know no other name
        model.fit(
            train,
            splits.train.y,
            eval_set=[(validation, splits.validation.y)],
            categorical_feature=[name for name in train if name.startswith("c")],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
    return lambda part: _predict(model, _trees_frame(part), splits)


def _fit_xgboost(splits: Splits, settings: dict[str, Any], seed: int) -> Predict:
    import xgboost

    cls = xgboost.XGBRegressor if splits.target.is_regression else xgboost.XGBClassifier
    model = cls(
        n_estimators=ROUNDS,
        learning_rate=settings.get("learning_rate", 0.1),
        max_leaves=settings.get("leaves", 31),
        max_depth=0,
        grow_policy="lossguide",
        min_child_weight=settings.get("min_leaf", 1),
        reg_lambda=settings.get("l2", 1.0),
        tree_method="hist",
        enable_categorical=True,
        early_stopping_rounds=PATIENCE,
        random_state=seed,
        n_jobs=torch.get_num_threads(),
    )

    def features(part: Part) -> pd.DataFrame:
        frame = _trees_frame(part)
        for i, size in enumerate(splits.preprocessor.cardinalities):
            frame[f"c{i}"] = pd.Categorical(frame[f"c{i}"], categories=range(size))
        return frame

    validation = [(features(splits.validation), splits.validation.y)]
    model.fit(features(splits.train), splits.train.y, eval_set=validation, verbose=False)
    return lambda part: _predict(model, features(part), splits)


def _fit_catboost(splits: Splits, settings: dict[str, Any], seed: int) -> Predict:
    import catboost

    cls = catboost.CatBoostRegressor if splits.target.is_regression else catboost.CatBoostClassifier
    train = _trees_frame(splits.train)
    model = cls(
        iterations=ROUNDS,
        learning_rate=settings.get("learning_rate"),
        depth=min(10, max(2, round(np.log2(settings.get("leaves", 64))))),
        l2_leaf_reg=settings.get("l2"),
        cat_features=[name for name in train if name.startswith("c")],
        random_seed=seed,
        thread_count=torch.get_num_threads(),
        allow_writing_files=False,
        verbose=False,
    )
    validation = (_trees_frame(splits.validation), splits.validation.y)
    model.fit(train, splits.train.y, eval_set=validation, early_stopping_rounds=PATIENCE)
    return lambda part: _predict(model, _trees_frame(part), splits)


def _predict(model: Any, features: Any, splits: Splits) -> np.ndarray:
    """Values `[rows]`, or probabilities `[rows, classes]` of all classes of the target."""
    if splits.target.is_regression:
        return np.asarray(model.predict(features), dtype=np.float64).reshape(-1)
    probabilities = np.zeros((len(features), len(splits.target.classes)))
    probabilities[:, np.asarray(model.classes_, dtype=int)] = model.predict_proba(features)
    return probabilities


BASELINES: dict[str, Callable[[Splits, dict[str, Any], int], Predict]] = {
    "linear": _fit_linear,
    "hist_gradient_boosting": _fit_hist_gradient_boosting,
    "lightgbm": _fit_lightgbm,
    "xgboost": _fit_xgboost,
    "catboost": _fit_catboost,
}
"""Fitting functions by name: `(splits, settings, seed)` to a function that predicts a `Part`."""
_PACKAGE_OF = {"lightgbm": "lightgbm", "xgboost": "xgboost", "catboost": "catboost"}


def is_installed(name: str) -> bool:
    """Whether the package of the baseline `name` is there."""
    return name not in _PACKAGE_OF or find_spec(_PACKAGE_OF[name]) is not None
