"""The names that people may rely on. A change here is a change for everyone: it belongs into the changelog."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pliant
from pliant import interventions, lora, manifolds, metrics, report, spectrum, statistics, tokens
from pliant.bench.experiment import method_table
from pliant.bench.streams import STREAMS
from pliant.commands import COMMANDS

PUBLIC = {
    "find_units declare_units verify UnitGraph UnitGroup",
    "monitor Monitor Alarm CSVWriter JSONLWriter MLflowWriter TensorBoardWriter WandbWriter",
    "fresh_twin probe ProbeResult live_twin LiveTwin diagnose Diagnosis",
    "attach Handle LoadReport EditLog LoggedEvent read_edits follow_resets",
    "FIRE L2 AdaptiveNormalization CChain ContinualBackprop ExperienceReplay FeatureNorm FreshStart",
    "GradientNoise HareAndTortoise InsertDropout InsertNormalization L2EffectiveRank L2Init LayerReset",
    "NormalizeAndProject OptimizerReset Parseval PlasticityInjection ReDo ReGraMa",
    "SelectiveWeightReset SelfNormalizedReset ShrinkAndPerturb SpectralRegularisation WeightClipping",
    "WeightNoise",
    "PliantError UnsupportedError UnsupportedOp NotYetSupported IllegalConfiguration NoEffect NoEffectWarning",
    "RecordError",
}

OPTIONS = {
    "demo": "debug out quick seeds workers",
    "run": (
        "backend data-dir debug dry-run lr max-time method optimizer out preset schedule seeds set stack stream tasks "
        "workers"
    ),
    "tune": (
        "backend data-dir debug dry-run extend last-fraction lr max-time method optimizer out preset sampler "
        "sampler-seed schedule search seeds set stack stream tasks trials tune-on workers"
    ),
    "merge": "debug folders out",
    "list": "debug kind",
    "show": "debug name",
    "report": "csv debug figure folder markdown metric out stream threshold",
    "units": "debug input model verify",
    "diagnose": "batch checkpoint debug html json loss mode model optimizer seed twins units",
}

METHODS = {
    "adaptive_normalization": "rate every dormant_above dormant_below growth_above growth_below tau where",
    "c_chain": "share lag start window every",
    "continual_backprop": (
        "replacement_rate maturity_threshold decay_rate utility exact decide_every sample_every where rates accumulate "
        "compensate_bias"
    ),
    "experience_replay": "capacity ratio keep_on",
    "feature_norm": "strength where",
    "fire": "iterations every where fused parts",
    "fresh_start": "every",
    "gradient_noise": "noise_scale decay relative_to where",
    "hare_and_tortoise": "decay every",
    "insert_dropout": "p where",
    "insert_normalization": "kind gate where",
    "l2": "strength where apply",
    "l2_effective_rank": "strength l2 every repeats apply rank project keep max_norm where inputs",
    "l2_init": "strength where apply norm",
    "layer_reset": "layers every",
    "normalize_and_project": "every affine decay unnormalised where",
    "optimizer_reset": "every part where",
    "parseval": "strength where apply scale normalise_rows reference_width every",
    "plasticity_injection": "module at",
    "redo": "tau every where",
    "regrama": "tau every where",
    "selective_weight_reset": "factor rule utility to every where",
    "self_normalized_reset": (
        "percentile initial_threshold min_threshold max_threshold expansion update_every min_active check_every where"
    ),
    "shrink_and_perturb": "shrink noise_scale every where noise",
    "spectral_regularisation": "strength where apply k every",
    "weight_clipping": "kappa where",
    "weight_noise": "noise_scale relative_to every where",
}

PPO = (
    "num_envs rollout_length num_epochs batch_size phase_steps gamma gae_lambda clip_range entropy_weight value_weight "
    "max_grad_norm"
)
STREAM_OPTIONS = {
    "permuted_digits": "num_examples num_test num_epochs batch_size",
    "permuted_mnist": "data_dir num_examples num_epochs batch_size",
    "random_label_digits": "num_examples num_epochs batch_size",
    "stationary_digits": "num_examples num_test num_epochs batch_size",
    "input_permuted": "dataset data_dir subset scaling flat num_examples same_images num_epochs batch_size num_test",
    "slowly_changing_regression": "num_bits num_slow change task_length num_target_units beta batch_size threshold",
    "continual_imagenet": (
        "dataset data_dir subset num_all num_train num_test image_size scaling flat classes_per_task num_epochs "
        "batch_size reshuffle reset_head"
    ),
    "class_incremental": (
        "dataset data_dir subset scaling flat classes_per_task num_train_per_class num_valid num_epochs "
        "batch_size augment"
    ),
    "random_label_images": "dataset data_dir subset scaling flat num_examples num_epochs batch_size",
    "label_permuted": "dataset data_dir subset scaling flat num_examples num_epochs batch_size num_test",
    "five_plus_one": (
        "dataset data_dir subset scaling flat num_hard num_easy hard_epochs easy_epochs batch_size per_class reuse"
    ),
    "data_growth": "dataset data_dir subset scaling flat fractions access num_epochs batch_size num_test",
    "continual_tiny_imagenet": (
        "dataset data_dir subset num_all num_train num_test image_size scaling flat classes_per_task access "
        "num_epochs batch_size"
    ),
    "label_noise": "dataset data_dir subset scaling flat noise access num_epochs batch_size num_test augment",
    "recurring": (
        "dataset data_dir subset scaling flat change num_examples num_epochs batch_size num_test num_concepts order"
    ),
    "smooth_drift": "dataset data_dir subset scaling flat change num_examples num_epochs batch_size num_test period",
    "day_and_weather": (
        "dataset data_dir subset scaling flat day_length weather severity num_examples num_epochs batch_size num_test"
    ),
    "regime_switching": (
        "num_channels window horizon num_regimes stay noise season num_examples num_epochs batch_size num_test flat"
    ),
    "click_through": (
        "num_fields vocabulary growth capacity zipf period bias num_examples num_epochs batch_size num_test"
    ),
    "character_drift": "text data_dir change context num_examples num_epochs batch_size num_test num_characters",
    "changing_control": (f"{PPO} changes actions num_sensors size width episode_steps"),
    "slippery_ant": f"{PPO} friction parts",
    "ant": f"{PPO} friction parts",
    "hopper": f"{PPO} friction parts",
    "walker": f"{PPO} friction parts",
    "folder": "data_dir digest shuffle_tasks num_epochs batch_size",
    "iterable": "source num_classes loss score num_epochs batch_size",
}

METRICS = """
    CATALOGUE MetricInfo
    active_fraction dead_fraction dead_mask dormancy_score dormant_fraction dormant_mask feature_norm
    saturated_fraction saturated_mask frozen_fraction frozen_mask
    clone_labels cloned_fraction cloned_mask num_distinct_units
    approximate_rank effective_rank numerical_rank participation_ratio srank stable_rank
    weight_magnitude weight_growth distance_from_initialisation update_to_weight_ratio
    gradient_norm gradient_dormancy_score gradient_dormant_fraction gradient_dormant_mask
    gradient_covariance gradient_interference gradient_rank empirical_fisher_trace isotropy_gap
    churn entropy output_diversity non_finite_fraction
"""

MANIFOLDS = """
    Audit Certificate Clone Collapsed Condition Confinement Distance DropoutBurst Escape FoundPartition FrozenGroup
    FrozenUnits NoiseBurst NormalShare Partition Setting Stability TrapTest UnitSpread UnitSymmetries audit certificate
    clone collapse confinement dimension distance drift_after_freezing escape escape_rate find_partition frozen_in
    frozen_units kicked matching_optimizer normal_part partition project redistributed reset_clones residual stability
    transformed_tensors trap_test unit_symmetries variance_ratio
"""

SPECTRUM = """
    BudgetRank Estimate Linearised Operator Quadrature ResolutionWarning Spectrum StepGain Tridiagonal basis_bytes
    budget_eps budget_rank condition_number curvature_share density effective_rank eps_rank expected_one_step_gain
    fisher_trace ggn_operator ggn_spectrum gram_bytes hessian_operator hessian_spectrum lanczos largest_eigenvalue
    linearise negative_mass ntk_condition ntk_effective_rank ntk_spectrum quadrature sharpness smallest_eigenvalue trace
"""

REPORT = """
    Trials csv_text figure_svg html_text markdown_text read_trials summarise terminal_tables write_csv write_markdown
    write_report
"""

STATISTICS = """
    BestOf Times area at_budget average backward_transfer best_of_k bootstrap bootstrap_each cost_per_gain
    expanded_level forgetting holm interquartile_mean iqm mean_ranks p_value performance_profile
    probability_of_improvement rank_agreement recent_transfer time_to_loss time_to_threshold times
"""

LORA = """
    BASE_FILE Pair RankRecycling check_peft contributions folded_delta folded_weights load_folded pairs save_folded
"""

TOKENS = """
    TokenReset TokenTable count_tokens grow_vocabulary occurrences rare_tokens renew_tokens token_tables
"""

OF_MODULES = {
    lora.RankRecycling: "fraction every maturity_threshold fold shared_base saving where",
    tokens.TokenReset: "unseen_for every init noise_scale where head",
}
"""Methods for one kind of model, which are named by their module: ``pliant.lora:RankRecycling``."""


def test_the_public_names():
    assert sorted(pliant.__all__) == sorted(" ".join(PUBLIC).split())
    for name in pliant.__all__:
        thing = getattr(pliant, name)
        assert not inspect.ismodule(thing), name
        assert name in dir(pliant)


def test_the_version_is_said_once():
    declared = re.search(
        r'^version = "(.*)"$', (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert declared is not None
    assert declared[1] == pliant.__version__


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert not hasattr(pliant, "atach")
    assert pliant.interventions is interventions


def test_the_methods_and_their_options():
    exported = """
        AdaptiveNormalization
        CChain
        ContinualBackprop
        ExperienceReplay
        FIRE
        FeatureNorm
        FreshStart
        GradientNoise
        HareAndTortoise
        InsertDropout
        InsertNormalization
        L2
        L2EffectiveRank
        L2Init
        LayerReset
        NormalizeAndProject
        OptimizerReset
        Parseval
        PlasticityInjection
        ReDo
        ReGraMa
        SelectiveWeightReset
        SelfNormalizedReset
        ShrinkAndPerturb
        SpectralRegularisation
        WeightClipping
        WeightNoise
    """
    assert sorted(interventions.__all__) == exported.split()
    found = {name: " ".join(field.name for field in dataclasses.fields(cls)) for name, cls in method_table().items()}
    assert found == METHODS


def test_the_streams_and_their_options():
    found = {name: " ".join(field.name for field in dataclasses.fields(cls)) for name, cls in STREAMS.items()}
    assert found == STREAM_OPTIONS


def test_the_command_line():
    found = {
        name: " ".join(sorted(field.name.replace("_", "-") for field in dataclasses.fields(cls)))
        for name, cls in COMMANDS.items()
    }
    assert found == OPTIONS


def test_metrics_and_reports():
    assert sorted(metrics.__all__) == sorted(METRICS.split())
    assert sorted(report.__all__) == REPORT.split()
    assert sorted(statistics.__all__) == STATISTICS.split()
    assert sorted(spectrum.__all__) == SPECTRUM.split()
    assert sorted(manifolds.__all__) == MANIFOLDS.split()
    assert sorted(lora.__all__) == LORA.split()
    assert sorted(tokens.__all__) == TOKENS.split()
    for cls, options in OF_MODULES.items():
        assert [field.name for field in dataclasses.fields(cls)] == options.split()
        assert list(cls.defaults) == options.split()
