"""Results of a study as `results.json` has them, made up; and the same with hostile text wherever text may stand."""

import math
import random

from xlingtox import languages

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u202e\x00"


PREDICTED = {
    "predictor": "retrieval",
    "pearson_low": 0.28,
    "pearson_high": 0.89,
    "error": 0.114,
    "guess": 0.152,
    "error_p": 0.013,
}


def made_up(seed=0):
    """Results like those of the miniature, but drawn at random."""
    rng = random.Random(seed)
    others = languages.CODES[1:]

    def side(factor):
        return {
            code: {
                "emt": 0.97 * (factor if code == "en" else min(1, factor + 0.02 * rank)),
                "toxicity_probability": 0.97 * (factor if code == "en" else min(1, factor + 0.02 * rank)),
                "average_toxicity": 0.6 * (factor if code == "en" else factor + 0.015 * rank),
                "degenerate": 0.012 if factor > 0.5 else 0.034,
                "perplexity": 6 + rank / 5 + (1 - factor),
                "continuation_perplexity": 5 + rank / 5 + 2 * (1 - factor),
                "distinct_1": 0.31 if factor > 0.5 else 0.17,
                "distinct_2": 0.62,
                "distinct_3": 0.74,
                "mean_activation": 0.2 - 0.3 * (1 - factor) + rank * 0.004,
            }
            for rank, code in enumerate(languages.CODES)
        }

    def half(toxicity, start, offset, beyond):
        def change(mean):
            return {"mean": mean, "low": mean - 0.05, "high": mean + 0.05, "p_value": 0.001}

        moved = {
            "change": change(toxicity - start),
            "beyond_control": change(toxicity - start + 0.01) if beyond else None,
        }
        ends = {"low": toxicity - 0.05, "high": toxicity + 0.05, "least": toxicity - 0.02}
        fluency = {"degenerate": 0.01, "perplexity": 7 + 0.2 * offset * offset}
        return {"average_toxicity": toxicity, **ends, **moved, **fluency}

    def doses(offsets, slope, spread, start=0.6):
        return [
            {
                "halves": [half(start * math.exp(slope * offset), start, offset, slope > 0.1) for _ in range(2)],
                "offset": offset,
                "average_toxicity": start * math.exp(slope * offset),
                "toxicity_by_language": dict.fromkeys(languages.CODES, 0.5),
                "degenerate": 0.01,
                "perplexity": 7 + 0.2 * offset * offset,
                "low": start * math.exp(slope * offset) - spread * abs(offset),
                "high": start * math.exp(slope * offset) + spread * abs(offset),
            }
            for offset in offsets
        ]

    before, after = side(0.95), side(0.02)
    drop = {code: 0.95 - 0.03 * rank + rng.uniform(-0.08, 0.08) for rank, code in enumerate(others)}
    words = ["fool", "tonto", "idiot", "дурак", "傻瓜", "ばか", "바보", "मूर्ख", "أحمق"]
    codes = [["en"], ["es"], ["fr", "de", "nl"], ["ru"], ["zh"], ["ja"], ["ko"], ["hi"], ["ar"]]
    tokens = [{"token": f" {word}", "languages": spoken} for word, spoken in zip(words, codes, strict=True)]
    return {
        "languages": list(languages.CODES),
        "probe": {"accuracy": 0.993, "auc": 0.999, "baseline": 0.5},
        "n_neurons": 2048,
        "potential": [[3, i] for i in range(100)],
        "cosines": [0.4 - i / 400 for i in range(100)],
        "actual": [[3, i] for i in range(36)],
        "intervention": doses([0, -0.25, -0.5, -1, -1.5, -2, -3], 1.5, 0),
        "control": doses([0, -0.25, -0.5, -1, -1.5, -2, -3], 0.01, 0.03),
        "amplification": doses([0, 0.5, 1, 2], 0.9, 0, 0.05),
        "amplification_control": doses([0, 0.5, 1, 2], 0.01, 0.01, 0.05),
        "intervention_dosing": {"unit": "sd", "match": "push", "n_neurons": 36, "n_random": 3, "n_constant": 0},
        "amplification_dosing": {"unit": "sd", "match": "push", "n_neurons": 36, "n_random": 3, "n_constant": 0},
        "text_read": "before",
        "same_text": {
            code: {"sources": [0.2, 0.15, -0.06, -0.04], "control": [0.19, 0.18, -0.02, 0.01]}
            for code in languages.CODES
        },
        "mean_same_text": {"sources": [0.2, 0.15, -0.06, -0.04], "control": [0.19, 0.18, -0.02, 0.01]},
        "specific": {
            code: [-0.04, -0.05, 0.01 if code in ("zh", "ar") else -0.03] for code in (*languages.CODES, "all")
        },
        "silent": {code: ["sources"] if code == "en" else [] for code in languages.CODES},
        "verdicts": [
            {"claim": "Toxicity can be localised in these 100 neurons.", "verdict": "weak", "reason": "Half of it is."}
        ],
        "warnings": ["Too little toxicity to tell: 3 of 400 continuations are toxic."],
        "changes_of_others": {
            "average_toxicity": {"mean": -0.45, "low": -0.462, "high": -0.441, "p_value": 0.0005},
        },
        "mean_changes": {
            name: {"mean": (low + high) / 2, "low": low, "high": high, "p_value": 0.0005}
            for name, low, high in (
                ("degenerate", 0.02, 0.0241),
                ("distinct_1", -0.15, -0.13),
                ("mean_activation", -0.3, -0.28),
                ("continuation_perplexity", 1.8, 1.99),
            )
        },
        "before": before,
        "after": after,
        "changes": {
            code: {
                name: [after[code][name] - before[code][name] - 0.03, after[code][name] - before[code][name] + 0.04]
                for name in ("emt", "average_toxicity", "distinct_1", "mean_activation")
            }
            for code in languages.CODES
        },
        "drift": [
            {
                "layer": layer,
                "kind": kind,
                "cosine": 0.99 - layer / 100,
                "norm_change": 0.001 * layer,
                "cosine_range": [0.97 - layer / 100, 1.0],
                "norm_change_range": [-0.01, 0.02],
            }
            for layer in range(4)
            for kind in ("key", "value")
        ],
        "neurons": [[3, i] for i in range(6)],
        "neuron_activations": {
            code: [[rng.uniform(0, 1) for _ in range(6)], [rng.uniform(-0.5, 0.2) for _ in range(6)]]
            for code in languages.CODES
        },
        "training": [
            {"step": step, "loss": 0.7 / step, "rewards/chosen": 0.01 * step, "rewards/rejected": -0.1 * step}
            for step in range(1, 9)
        ]
        + [{"step": step, "eval_loss": 0.8 / step} for step in (2, 4, 8)],
        "retrieval": {code: 0.5 - 0.02 * rank + rng.uniform(-0.06, 0.06) for rank, code in enumerate(others)},
        "transfer": {"measure": "emt", "pearson_r": 0.71, "p_value": 0.002},
        "transfer_by_measure": {
            "emt": {"pearson_r": 0.71, "p_value": 0.002, "drop": drop, "predictors": [PREDICTED]},
            "average_toxicity": {"pearson_r": 0.38, "p_value": 0.147, "drop": dict(drop)},
        },
        "groups": [
            {
                "kind": kind,
                "group": group,
                "language": language,
                "before": 0.2,
                "after": 0.05,
                "low": -0.2,
                "high": -0.1,
            }
            for kind, group in (
                ("prompts", "act in pairs"),
                ("words", "insult in pairs"),
                ("words", "insult elsewhere"),
            )
            for language in ("en", "es", "others")
        ],
        "promoted": [
            {"layer": 3, "index": i, "cosine": 0.4 - i / 100, "mean_activation": 0.3, "tokens": tokens}
            for i in range(12)
        ],
        "samples": {
            "en": [{"prompt": "Anna insults the baker.", "before": " She is a fool.", "after": " She is kind."}],
            "ar": [{"prompt": "آنا تهين الخباز.", "before": "هي حمقاء.", "after": "هي لطيفة."}],
        },
        "given": {code: {"text": 5.0, "switched": 0.5, "translated": 0.3, "loans": 0.1} for code in languages.CODES},
        "scorer": {"name": "wordlist", "revision": "0123456789ab", "languages": list(languages.CODES)},
        "model": {"name": "mini", "fingerprint": "abc123"},
        "seconds": {"localize": 4.2, "tune": 30.0},
        "versions": {"python": "3.11", "torch": "2.13"},
        "seed": 0,
    }


def attributed():
    """What the stage `attribute` keeps: sources that carry 1 % of a change of −5, and others that carry 33 %."""
    codes = [code for code in languages.CODES for _ in range(3)]
    base = [-8.0 - 0.1 * (place % 5) for place in range(len(codes))]

    def runs(change, shares):
        moved = [change * (1 + 0.01 * (place % 7)) for place in range(len(codes))]
        of_groups = {
            group: [b + share * m for b, m in zip(base, moved, strict=True)] for group, share in shares.items()
        }
        tuned = [b + m for b, m in zip(base, moved, strict=True)]
        return {"languages": codes, "runs": {"base": base, "tuned": tuned, **of_groups}, "match": "layers"}

    shares = {"sources": 0.01, "sources (random)": 0.002, "by attribution": 0.33, "by attribution (random)": 0.01}
    shares |= {"all neurons": 0.5, "all heads": 0.4}
    sums = {"exact": -5.0, "patched": -4.3, "linear": -9.0, "integrated": -4.29, "completeness": 0.998}
    return {
        "attribution": {
            "by_language": [
                {"language": code, "n_prompts": 3, **sums, "remainder": -0.71} for code in (*languages.CODES, "all")
            ],
            "by_layer": [
                {"component": kind, "layer": layer, "language": code, "linear": -1.0, "integrated": -0.5}
                for kind in ("neurons", "heads")
                for layer in range(4)
                for code in (*languages.CODES, "all")
            ],
            "neurons": [[3, 0, -2.6], [3, 1, -2.5]] + [[2, i, -2.4 + i / 20] for i in range(34)],
            "heads": [[1, 2, -1.5], [3, 0, -0.25]],
        },
        "patched": runs(-5.0, shares),
        "patched_sound": runs(-0.3, shares),
    }


def rivals():
    """What the stage `frontier` keeps: a method that wins, one whose text gets less sound first, and a control."""
    places = ["all", *languages.CODES]
    strengths = {"DPO": (0.3, 0.12), "AurA": (0.55, 0.5), "random neurons": (0.59, 0.6)}

    def columns(rows):
        return {name: [row[name] for row in rows] for name in rows[0]}

    def point(method, strength, place, toxicity):
        ends = {"low": toxicity - 0.05, "high": toxicity + 0.05}
        fluency = {
            "perplexity": 7 * (1 + 0.1 * strength),
            "degenerate": 0.01,
            "silent": 0.0,
            "distinct": 0.6,
            "sound": True,
        }
        row = {"method": method, "strength": strength, "language": place, "toxicity": toxicity}
        return row | ends | fluency | {"knowledge": 1.5}

    def at_budget(budget, method, place):
        toxicity = strengths[method][budget > 1.05]
        by_text = method == "AurA"
        return {
            "budget": budget,
            "method": method,
            "language": place,
            "strength": 1.0,
            "toxicity": toxicity,
            "low": toxicity - 0.05,
            "high": toxicity + 0.05,
            "change": toxicity - 0.6,
            "change_low": toxicity - 0.65,
            "change_high": toxicity - 0.55,
            "p": 0.0001 if toxicity < 0.55 else 0.4,
            "perplexity": 7.7,
            "degenerate": 0.02,
            "reached": not by_text,
            "stopped_by": "degenerate text" if by_text else "perplexity",
            "control": method == "random neurons",
        }

    def wins(budget, method, lowest, clearly, beats, loses):
        numbers = {"languages_lowest": lowest, "languages_clearly_lowest": clearly, "beats": beats, "loses": loses}
        numbers |= {"beats_overall": beats // 9, "loses_overall": loses // 9, "control": method == "random neurons"}
        return {"budget": budget, "method": method, **numbers}

    budgets, reached = (1.05, 1.1), {"en": -0.5, "others": -0.4, **dict.fromkeys(languages.CODES[1:], -0.4)}
    points = [point("unedited", 0.0, place, 0.6) for place in places]
    points += [
        point(method, float(step), place, toxicity)
        for method, levels in strengths.items()
        for step, toxicity in enumerate(levels, start=1)
        for place in places
    ]
    return {
        "frontier": {
            "judge": "wordlist",
            "budgets": list(budgets),
            "controls": ["random neurons"],
            "warnings": ["There is one judge only: another may see it differently."],
            "points": columns(points),
            "at_budgets": columns(
                [at_budget(budget, method, place) for budget in budgets for method in strengths for place in places]
            ),
            "wins": columns(
                [
                    wins(budget, *row)
                    for budget in budgets
                    for row in (("DPO", 17, 12, 29, 0), ("AurA", 0, 0, 9, 12), ("random neurons", 0, 0, 0, 26))
                ]
            ),
            "transfers": columns(
                [
                    {
                        "budget": budget,
                        "method": method,
                        "language": place,
                        "strength": 1.0,
                        "effect": effect,
                        "share": effect / -0.5,
                        "low": effect / -0.5 - 0.1,
                        "high": effect / -0.5 + 0.1,
                    }
                    for budget in budgets
                    for method in strengths
                    for place, effect in reached.items()
                ]
            ),
            "costs": columns(
                [
                    {"method": "DPO", "fit_seconds": 30.0, "token_seconds": 1.0, "baked": True, "reason": ""},
                    {"method": "AurA", "fit_seconds": 2.5, "token_seconds": 1.1, "baked": False, "reason": "no bias"},
                    {
                        "method": "random neurons",
                        "fit_seconds": 0.5,
                        "token_seconds": 1.05,
                        "baked": True,
                        "reason": "",
                    },
                ]
            ),
        }
    }


def other_effects():
    """What the stage `side_effects` keeps: one measure got worse in one language, and a task shows nothing."""
    model = {"name": "mini", "revision": None, "dtype": "float32", "fingerprint": "0123456789ab", "edit": None}
    shown = {"low": 0.5, "high": 1.5, "p_value": 0.0005}
    nothing = {"low": -0.2, "high": 0.3, "p_value": 0.6}

    def row(measure, language, before, after, direction, interval):
        about = {"measure": measure, "language": language, "before": before, "after": after}
        return about | interval | {"n": 40, "direction": direction}

    return {
        "side_effects": {
            "rows": [
                row("perplexity", "en", 4.0, 5.0, "lower", shown),
                row("perplexity", "es", 4.0, 4.1, "lower", nothing),
                row("capitals: acc", "en", 0.3, 0.35, "higher", nothing),
            ],
            "models": [model, model | {"name": "tuned", "fingerprint": "ba9876543210"}],
            "settings": {"n_samples": 5, "limit": None},
            "doubts": ["capitals, English: the model before has acc 0.30, and guessing gives 0.25."],
        }
    }


KEYS_OF_STAGES = {
    "localize": "probe n_neurons potential cosines actual activations evidence",
    "promoted": "promoted",
    "intervene": "intervention control intervention_dosing",
    "amplify": "amplification amplification_control amplification_dosing",
    "retrieve": "retrieval retrieval_intervals retrieval_by_layer n_parallel",
    "tune": "recipe training end_token",
    "compare": "before after changes scorer models mean_changes changes_of_others drift neurons neuron_activations "
    "text_read same_text mean_same_text specific silent groups samples",
    "predict": "transfer transfer_by_measure",
    "attribute": "attribution patched patched_sound",
    "frontier": "frontier",
    "side_effects": "side_effects",
    "judge": "verdicts warnings",
}
"""The keys that each stage writes."""


def told(content=None):
    """A study that says where its data came from, and how it was tuned and judged."""
    content = made_up() if content is None else content
    codes = list(content["languages"])
    each = dict.fromkeys(codes, 30)
    row = {"loader": "rtp_lx", "path": "RTP-LX.zip", "n": 30 * len(codes), "languages": each, "hash": "0123456789ab"}
    pairs = {"loader": "toxicity_pairwise", "path": "pairs.csv", "n": 1000, "languages": {"en": 1000}}
    return content | {
        "origins": [
            {"table": "toxic_prompts", "made_from": None} | row,
            {"table": "pairs", "made_from": None, "hash": "ba9876543210"} | pairs,
            {"table": "held_out"} | row | {"loader": None, "path": None, "made_from": "parallel"},
        ],
        "notes": ["Amharic was dropped: no judge covers it."],
        "settings": {"k": 100, "n_samples": 25, "pairs_order": "given", "recipe": {"steps": 22, "lora": None}},
        "recipe": {"steps": 22, "batch_size": 4, "learning_rate": 1e-4, "beta": 0.1, "lora": None},
        "end_token": {"preferred": False, "reason": "98 % of sides were cut off."},
        "judges": [{"name": "wordlist", "revision": "0123456789ab", "languages": codes}],
        "retrieval_by_layer": {code: [0.01, 0.3, 0.6, 0.4] for code in content.get("retrieval", {})},
        "n_parallel": dict.fromkeys(content.get("retrieval", {}), 500),
    }


def only(*stages, source_language="en", content=None):
    """The made-up study, as its file is where only these stages were run, and it speaks of another source language."""
    content = attributed() | rivals() | other_effects() | told(content)
    kept = {"languages", "model", "seconds", "versions", "seed", "identified", "origins", "notes", "settings", "judges"}
    kept |= {key for stage in stages for key in KEYS_OF_STAGES[stage].split()}
    content = {key: value for key, value in content.items() if key in kept}
    if source_language != "en" and "retrieval" in content:
        for key in ("retrieval", "retrieval_by_layer", "n_parallel"):
            content[key]["en"] = content[key].pop(source_language)
    return content | {"stages": list(stages), "source_language": source_language}


def hostile(evil=HOSTILE):
    """The made-up study with `evil` as a language, token, text, model, origin, setting, note, stage and judge."""
    results = made_up()
    results["languages"][-1] = evil
    for key in (
        *("before", "after", "retrieval", "changes", "neuron_activations", "given", "samples"),
        *("same_text", "specific", "silent"),
    ):
        results[key][evil] = results[key].pop("ar")
    for summary in results["transfer_by_measure"].values():
        summary["drop"][evil] = summary["drop"].pop("ar")
    results["transfer_by_measure"][evil] = results["transfer_by_measure"]["emt"]
    results["promoted"][0]["tokens"] = [
        {"token": evil, "languages": [evil, "en"]},
        {"token": evil, "languages": [evil]},
        {"token": "\ufffd", "languages": []},
        {"token": " ", "languages": ["en"]},
        {"token": "\ud800", "languages": ["en"]},
    ]
    results["verdicts"] = [{"claim": evil, "verdict": "weak", "reason": evil}]
    results["warnings"] = [evil]
    for code in results["same_text"]:
        results["same_text"][code][evil] = results["same_text"][code]["control"]
    results["samples"]["en"] = [{"prompt": evil, "before": evil, "after": evil}]
    for change in results["groups"][:6]:
        change["group"] = evil
    results["model"] = {"name": evil, "fingerprint": evil}
    results["versions"] = {evil: evil}
    results["seconds"] = {evil: 1.0}
    results["scorer"] = {"name": evil, "revision": evil, "languages": [evil]}
    results = told(results)
    results["judges"] = [{"name": evil, "revision": evil, "languages": [evil]}]
    results["notes"] = [evil]
    results["origins"] = [
        dict.fromkeys(("table", "loader", "path", "n", "hash", "made_from"), evil) | {"languages": {evil: evil}},
        *results["origins"],
    ]
    results["settings"] = {evil: evil, "recipe": {evil: [evil]}, "pairs_order": evil}
    results["recipe"] = {evil: evil, "steps": evil, "beta": evil, "lora": {"rank": evil, "bits": evil}}
    results["end_token"] = {"preferred": evil, "reason": evil}
    return results
