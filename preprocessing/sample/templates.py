"""Sentences for the abstracts, by relation.

{subject} and {object} stand for a name of the fact's concepts, {number} for a random whole number; <sup>, <sub> and
<i> become inline markup. No template may have a name of a concept in its own words: every mention comes from a slot,
so that the gold mentions are complete.
"""

from __future__ import annotations

TITLES = {
    "may_treat": (
        "{subject} for {object}: a randomized trial in {number} volunteers",
        "Efficacy of {subject} in {object}",
        "{subject} versus usual care in adults with {object}",
        "Response of {object} to {subject}",
    ),
    "may_prevent": (
        "Does {subject} prevent {object}?",
        "{subject} and the incidence of {object}: a cohort of {number} adults",
        "Prevention of {object} with {subject}",
    ),
    "may_diagnose": (
        "Accuracy of {subject} for {object}",
        "{subject} in the detection of {object}",
        "Early recognition of {object} by {subject}",
    ),
    "causative_agent_of": (
        "{subject} as the agent of {object}",
        "{object} due to {subject} in {number} travellers",
        "Outbreak of {object} traced to {subject}",
    ),
    "has_finding_site": (
        "Changes of the {object} in {subject}",
        "How {subject} alters the {object}",
        "The {object} in {subject}: a study of {number} samples",
    ),
    "has_manifestation": (
        "{object} as a presenting complaint of {subject}",
        "Prevalence of {object} in {subject}",
        "{subject} presenting with {object}",
    ),
    "isa": (
        "{subject} among the forms of {object}",
        "{subject} and other types of {object}: a review",
    ),
    "contraindicated_with_disease": (
        "{subject} should be avoided in {object}",
        "Harm from {subject} in people with {object}",
        "{object} after {subject}: a safety report",
    ),
    "has_mechanism_of_action": (
        "{subject} acts through {object}",
        "Evidence for {object} by {subject}",
    ),
    "has_ingredient": (
        "{subject}, a combination that contains {object}",
        "Release of {object} from {subject}",
    ),
    "gene_associated_with_disease": (
        "{subject} variants in {object}",
        "Sequencing of {subject} in {number} families with {object}",
        "{object} and mutations of {subject}",
    ),
}

SENTENCES = {
    "may_treat": (
        "{subject} is an established treatment for {object}.",
        "Participants with {object} who were given {subject} improved more than those given placebo.",
        "We assigned {number} adults with {object} to {subject} or placebo.",
        "After {number} weeks, {subject} had relieved {object} in most participants.",
        "{object} responded well to {subject}.",
        "Treatment of {object} with {subject} was effective and safe.",
        "The severity of {object} fell by {number}% with {subject}.",
        "A patient with {object} took {subject} and had improved after {number} hours.",
        "Patients treated with {subject} show reduced {object} after {number} hours.",
    ),
    "may_prevent": (
        "{subject} lowered the risk of {object} by {number}%.",
        "New cases of {object} were fewer among those given {subject}.",
        "Guidelines advise {subject} to prevent {object} in people at risk.",
        "Prophylaxis with {subject} protected against {object}.",
        "Patients who took {subject} developed {object} less often.",
    ),
    "may_diagnose": (
        "{subject} confirmed {object} in {number} of the participants.",
        "{object} was diagnosed by {subject}.",
        "The sensitivity of {subject} for {object} was {number}%.",
        "Where {object} is suspected, {subject} should be the first test.",
    ),
    "causative_agent_of": (
        "{subject} is a cause of {object}.",
        "{object} was caused by {subject} in {number} of the cases.",
        "{subject} was isolated from {number} people with {object}.",
        "Exposure to {subject} leads to {object}.",
    ),
    "has_finding_site": (
        "{subject} affects the {object}.",
        "In {subject}, the {object} is damaged early.",
        "Lesions of the {object} are typical of {subject}.",
        "Samples from the {object} were taken from people with {subject}.",
    ),
    "has_manifestation": (
        "{subject} often begins with {object}.",
        "{object} was reported by {number}% of the people with {subject}.",
        "Typical complaints in {subject} include {object}.",
        "{object} is a frequent sign of {subject}.",
    ),
    "isa": (
        "{subject} is a form of {object}.",
        "Among the kinds of {object}, {subject} is well known.",
        "{subject} belongs to the group called {object}.",
    ),
    "contraindicated_with_disease": (
        "{subject} should not be given to people with {object}.",
        "{object} is a contraindication to {subject}.",
        "Because of the risk of harm in {object}, {subject} was withheld.",
        "{number} participants stopped {subject} because of {object}.",
    ),
    "has_mechanism_of_action": (
        "{subject} acts by {object}.",
        "The effect of {subject} is explained by {object}.",
        "{object} was seen within minutes of adding {subject}.",
    ),
    "has_ingredient": (
        "{subject} contains {object}.",
        "{object} is an active ingredient of {subject}.",
        "Each dose of {subject} delivers {number} mg of {object}.",
    ),
    "gene_associated_with_disease": (
        "Mutations of {subject} are linked to {object}.",
        "{subject} was altered in {number}% of people with {object}.",
        "Carriers of variants in {subject} are at risk of {object}.",
    ),
}

FILLERS = (
    "The mean body mass index was {number} kg/m<sup>2</sup>.",
    "We enrolled {number} participants at {number} centres.",
    "Follow-up lasted {number} months.",
    "The difference was significant (P < 0.001).",
    "Counts fell from 10<sup>6</sup> to 10<sup>3</sup> per millilitre.",
    "Oxygen was measured as SpO<sub>2</sub> at rest & during exercise.",
    "Two reviewers read all reports <i>in duplicate</i>.",
    "Baseline characteristics were similar in both groups.",
    "All patients gave written consent.",
    "She was seen again by her own doctor after {number} days.",
    "He has been well since then, and his examination was normal.",
    "Patients were asked to return within {number} hours.",
)

CLOSINGS = (
    "These results support further study of {subject} and {object}.",
    "In conclusion, {subject} matters for {object}.",
    "Larger trials on {subject} and {object} are needed.",
    "We conclude that the link between {subject} and {object} is real.",
)

# The paper's Figure 1: glycerin, inflammation (dermatitis) and the fact may_prevent between them.
FIGURE_1_TITLE = "Topical {subject} and {object}"
FIGURE_1_SENTENCES = (
    "We tested whether {subject} prevents {object} after contact with detergent.",
    "Forearms treated with {subject} show reduced {object} after 2 hours.",
    "No side effects were seen.",
)
FIGURE_1_NAMES = {"subject": "glycerin", "object": "inflammation"}
