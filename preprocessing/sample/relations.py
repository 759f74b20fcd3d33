"""The facts of the mini UMLS.

A line "subject: object; object" under a relation is one fact per object; every fact also stands in MRREL the other
way round under the relation's inverse, as in UMLS. Subjects and objects are any unambiguous name of a concept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from preprocessing.sample.concepts import Concept, concepts_by_name


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A kind of fact with all its facts."""

    name: str
    inverse: str
    phrase: str
    """The relation in plain words, for definitions."""
    table: str
    """Lines "subject: object; object"."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """subject relation object, such as glycerin may_prevent dermatitis."""

    subject: Concept
    relation: Relation
    object: Concept


@cache
def all_facts() -> tuple[Fact, ...]:
    """All facts in one direction, in the order of the tables below."""
    by_name = concepts_by_name()
    facts = []
    for relation in RELATIONS:
        for line in relation.table.strip().splitlines():
            subject, objects = line.split(": ")
            for name in objects.split("; "):
                fact = Fact(subject=by_name[subject.lower()], relation=relation, object=by_name[name.lower()])
                facts.append(fact)
    return tuple(facts)


@cache
def facts_about(concept: Concept) -> tuple[Fact, ...]:
    """All facts whose subject or object is the concept."""
    return tuple(fact for fact in all_facts() if concept in (fact.subject, fact.object))


_MAY_TREAT = """
aspirin: pain; fever; headache; myocardial infarction; stroke
ibuprofen: pain; fever; osteoarthritis; arthralgia
acetaminophen: pain; fever; headache; myalgia
metformin: type 2 diabetes mellitus; diabetes mellitus
glyburide: type 2 diabetes mellitus
insulin: type 1 diabetes mellitus; type 2 diabetes mellitus; diabetes mellitus
warfarin: deep vein thrombosis; pulmonary embolism; atrial fibrillation
heparin: deep vein thrombosis; pulmonary embolism
lisinopril: hypertension; heart failure; diabetic nephropathy
captopril: hypertension; heart failure
enalapril: hypertension; congestive heart failure
losartan: hypertension; diabetic nephropathy; Marfan syndrome
atenolol: hypertension; angina pectoris
metoprolol: hypertension; heart failure; angina pectoris
propranolol: hypertension; tremor; cardiac arrhythmia
amlodipine: hypertension; angina pectoris
nifedipine: hypertension; angina pectoris
hydrochlorothiazide: hypertension; edema
furosemide: edema; congestive heart failure; peripheral edema
spironolactone: heart failure; edema; hypokalemia
digoxin: heart failure; atrial fibrillation
amiodarone: atrial fibrillation; cardiac arrhythmia
atorvastatin: hypercholesterolemia; hyperlipidemia; coronary artery disease
simvastatin: hypercholesterolemia; hyperlipidemia
pravastatin: hypercholesterolemia; atherosclerosis
albuterol: asthma; bronchospasm; wheezing; chronic obstructive pulmonary disease
fluticasone: asthma; allergic rhinitis
budesonide: asthma; Crohn disease
montelukast: asthma; allergic rhinitis
theophylline: asthma; chronic obstructive pulmonary disease
salmeterol: asthma; chronic obstructive pulmonary disease
prednisone: rheumatoid arthritis; systemic lupus erythematosus; ulcerative colitis
dexamethasone: multiple myeloma; meningitis; COVID-19
hydrocortisone: Addison disease; dermatitis; atopic dermatitis; adrenal cortex disease
methotrexate: rheumatoid arthritis; psoriasis
hydroxychloroquine: systemic lupus erythematosus; rheumatoid arthritis; malaria
infliximab: Crohn disease; ulcerative colitis; psoriasis
adalimumab: rheumatoid arthritis; Crohn disease; ankylosing spondylitis
rituximab: diffuse large B-cell lymphoma; rheumatoid arthritis
trastuzumab: breast carcinoma
imatinib: chronic myeloid leukemia
tamoxifen: breast carcinoma
cisplatin: lung carcinoma; ovarian carcinoma; non-small cell lung carcinoma
doxorubicin: breast carcinoma; Hodgkin disease; acute myeloid leukemia
paclitaxel: ovarian carcinoma; breast carcinoma; non-small cell lung carcinoma
fluorouracil: colorectal carcinoma; breast carcinoma
cyclophosphamide: systemic lupus erythematosus; Hodgkin disease; multiple myeloma
tacrolimus: organ rejection; atopic dermatitis
cyclosporine: organ rejection; psoriasis
azathioprine: organ rejection; Crohn disease
amoxicillin: pneumonia; otitis media; urinary tract infection; peptic ulcer
vancomycin: sepsis; endocarditis
ciprofloxacin: urinary tract infection; cystic fibrosis
azithromycin: pneumonia; gonorrhea
erythromycin: acne; bacterial conjunctivitis
doxycycline: Lyme disease; acne; cholera
isoniazid: tuberculosis
rifampin: tuberculosis; leprosy
ethambutol: tuberculosis
pyrazinamide: tuberculosis
chloroquine: malaria
quinine: malaria
artemether: malaria
lumefantrine: malaria
fluconazole: candidiasis
amphotericin B: aspergillosis; candidiasis
acyclovir: herpes simplex; herpes zoster
oseltamivir: influenza
zidovudine: HIV infection
lamivudine: HIV infection; hepatitis B
omeprazole: gastroesophageal reflux disease; peptic ulcer; duodenal ulcer; heartburn
ranitidine: duodenal ulcer; gastroesophageal reflux disease; dyspepsia
ondansetron: nausea; vomiting
fluoxetine: depressive disorder; anxiety disorder
sertraline: depressive disorder; anxiety disorder
amitriptyline: depressive disorder; migraine; diabetic neuropathy
lithium: bipolar disorder
clozapine: schizophrenia
haloperidol: schizophrenia; Huntington disease
levodopa: Parkinson disease
phenytoin: epilepsy
valproate: epilepsy; bipolar disorder
lamotrigine: epilepsy; bipolar disorder
levetiracetam: epilepsy
gabapentin: epilepsy; diabetic neuropathy
diazepam: anxiety disorder; insomnia; epilepsy
morphine: pain; chest pain
codeine: cough; pain
naloxone: opioid overdose
sumatriptan: migraine
allopurinol: gout
colchicine: gout
alendronate: osteoporosis
levothyroxine: hypothyroidism
propylthiouracil: hyperthyroidism; Graves disease
methimazole: hyperthyroidism; Graves disease
timolol: glaucoma; ocular hypertension
latanoprost: glaucoma; ocular hypertension
epinephrine: anaphylaxis; bronchospasm
donepezil: Alzheimer disease; memory loss
ivermectin: onchocerciasis
bisacodyl: constipation
loperamide: diarrhea; irritable bowel syndrome
clopidogrel: myocardial infarction; stroke; coronary artery disease
benzathine penicillin: syphilis
ceftriaxone: gonorrhea; meningitis; sepsis
cetirizine: urticaria; allergic rhinitis; pruritus
nitroglycerin: angina pectoris; chest pain
vitamin B12: pernicious anemia
vitamin D: rickets; osteoporosis
ascorbic acid: scurvy
trimethoprim: urinary tract infection
sulfamethoxazole: urinary tract infection; toxoplasmosis
kidney transplantation: chronic kidney disease
hemodialysis: chronic kidney disease; acute kidney injury
liver transplantation: liver cirrhosis; liver disease
radiotherapy: prostate carcinoma; breast carcinoma; lung carcinoma
coronary artery bypass surgery: coronary artery disease
cataract extraction: cataract
phototherapy: psoriasis; jaundice
glycerin: constipation
"""

_MAY_PREVENT = """
glycerin: dermatitis
aspirin: myocardial infarction; stroke; colorectal carcinoma
warfarin: stroke
heparin: pulmonary embolism
atorvastatin: myocardial infarction; stroke
folic acid: neural tube defect
vitamin D: rickets
ascorbic acid: scurvy
isoniazid: tuberculosis
chloroquine: malaria
doxycycline: malaria
tamoxifen: breast carcinoma
propranolol: migraine
valproate: migraine
cyclosporine: organ rejection
tacrolimus: organ rejection
dexamethasone: neonatal respiratory distress syndrome
ondansetron: vomiting
oseltamivir: influenza
measles vaccination: measles
influenza vaccination: influenza
polio vaccination: poliomyelitis
tetanus vaccination: tetanus
alendronate: osteoporosis
"""

_MAY_DIAGNOSE = """
magnetic resonance imaging: multiple sclerosis; stroke; epilepsy
computed tomography: stroke; pulmonary embolism; lung carcinoma
electrocardiogram: atrial fibrillation; myocardial infarction; cardiac arrhythmia
echocardiography: heart failure; endocarditis; mitral stenosis; aortic stenosis
biopsy: celiac disease; melanoma; prostate carcinoma
colonoscopy: colorectal carcinoma; ulcerative colitis
electroencephalography: epilepsy
mammography: breast carcinoma
spirometry: asthma; chronic obstructive pulmonary disease
tonometry: glaucoma; ocular hypertension
lumbar puncture: meningitis
bone densitometry: osteoporosis
tuberculin skin test: tuberculosis
urea breath test: peptic ulcer
gastroscopy: duodenal ulcer; peptic ulcer; gastroesophageal reflux disease
coronary angiography: coronary artery disease
skin prick test: allergic rhinitis
fundoscopy: diabetic retinopathy
prostate-specific antigen: prostate carcinoma
cardiac troponin: myocardial infarction
D-dimer: deep vein thrombosis; pulmonary embolism
hemoglobin A1c: diabetes mellitus; type 2 diabetes mellitus
rheumatoid factor: rheumatoid arthritis
thyrotropin: hypothyroidism; hyperthyroidism
natriuretic peptide B: heart failure; congestive heart failure
creatinine: chronic kidney disease; acute kidney injury
bilirubin: jaundice; liver disease
uric acid: gout
C-reactive protein: sepsis
"""

_CAUSATIVE_AGENT_OF = """
Mycobacterium tuberculosis: tuberculosis
Mycobacterium leprae: leprosy
Streptococcus pneumoniae: pneumonia; meningitis; otitis media
Staphylococcus aureus: cellulitis; endocarditis; sepsis; bacterial conjunctivitis
Escherichia coli: urinary tract infection; sepsis
Helicobacter pylori: peptic ulcer; duodenal ulcer
Neisseria meningitidis: meningitis
Neisseria gonorrhoeae: gonorrhea
Borrelia burgdorferi: Lyme disease
Treponema pallidum: syphilis
Vibrio cholerae: cholera
Clostridium tetani: tetanus
Pseudomonas aeruginosa: pneumonia; cystic fibrosis
human immunodeficiency virus: HIV infection
hepatitis B virus: hepatitis B; liver cirrhosis
hepatitis C virus: hepatitis C; liver cirrhosis
influenza virus: influenza
SARS-CoV-2: COVID-19
measles virus: measles
poliovirus: poliomyelitis
varicella-zoster virus: herpes zoster
herpes simplex virus: herpes simplex
Plasmodium falciparum: malaria
Onchocerca volvulus: onchocerciasis
Toxoplasma gondii: toxoplasmosis
Candida albicans: candidiasis
Aspergillus fumigatus: aspergillosis
ethanol: liver cirrhosis
benzo(a)pyrene: lung carcinoma
"""

_HAS_FINDING_SITE = """
asthma: bronchus; lung
chronic obstructive pulmonary disease: lung; bronchus
pneumonia: lung
tuberculosis: lung
hepatitis B: liver
hepatitis C: liver
liver cirrhosis: liver
liver disease: liver
lung disease: lung
rheumatoid arthritis: joint
osteoarthritis: joint
arthritis: joint
gout: joint
ankylosing spondylitis: joint
osteoporosis: bone
rickets: bone
multiple sclerosis: brain; spinal cord
Parkinson disease: brain
Alzheimer disease: brain
Huntington disease: brain
epilepsy: brain
migraine: brain
stroke: brain
heart failure: heart
congestive heart failure: heart
coronary artery disease: heart; artery
myocardial infarction: heart
atrial fibrillation: heart
heart disease: heart
mitral stenosis: heart
aortic stenosis: heart
endocarditis: heart
angina pectoris: heart
atherosclerosis: artery
pulmonary embolism: lung
deep vein thrombosis: vein
diabetic retinopathy: retina
diabetic nephropathy: kidney
glaucoma: eye
ocular hypertension: eye
cataract: eye
bacterial conjunctivitis: eye
psoriasis: skin
dermatitis: skin
atopic dermatitis: skin
acne: skin
urticaria: skin
skin disease: skin
cellulitis: skin
melanoma: skin
leprosy: skin
allergic rhinitis: nasal mucosa
peptic ulcer: stomach
duodenal ulcer: small intestine
gastroesophageal reflux disease: esophagus
Crohn disease: small intestine
ulcerative colitis: colon
irritable bowel syndrome: colon
celiac disease: small intestine
hypothyroidism: thyroid gland
hyperthyroidism: thyroid gland
Graves disease: thyroid gland
Addison disease: adrenal cortex
adrenal cortex disease: adrenal cortex
Cushing syndrome: adrenal cortex
kidney disease: kidney
chronic kidney disease: kidney
acute kidney injury: kidney
urinary tract infection: urinary bladder
cystic fibrosis: lung; pancreas
Duchenne muscular dystrophy: skeletal muscle
meningitis: meninges
poliomyelitis: spinal cord
type 1 diabetes mellitus: pancreas
breast carcinoma: breast
lung carcinoma: lung
non-small cell lung carcinoma: lung
prostate carcinoma: prostate
colorectal carcinoma: colon
chronic myeloid leukemia: bone marrow
acute myeloid leukemia: bone marrow
multiple myeloma: bone marrow
ovarian carcinoma: ovary
"""

_HAS_MANIFESTATION = """
asthma: wheezing; dyspnea; cough
chronic obstructive pulmonary disease: dyspnea; cough
pneumonia: fever; cough; dyspnea
tuberculosis: hemoptysis; weight loss; cough
malaria: fever; headache; anemia
HIV infection: weight loss; fever
hepatitis B: jaundice; fatigue
hepatitis C: fatigue; jaundice
liver cirrhosis: jaundice; edema
rheumatoid arthritis: arthralgia; fatigue
osteoarthritis: arthralgia
gout: arthralgia
systemic lupus erythematosus: arthralgia; fatigue; proteinuria
multiple sclerosis: muscle weakness; fatigue
Parkinson disease: tremor
Alzheimer disease: memory loss
Huntington disease: tremor
migraine: headache; nausea; vomiting
heart failure: dyspnea; peripheral edema; fatigue
congestive heart failure: dyspnea; peripheral edema
myocardial infarction: chest pain; syncope
atrial fibrillation: palpitations; dizziness
angina pectoris: chest pain
aortic stenosis: syncope; chest pain
pulmonary embolism: dyspnea; chest pain; hemoptysis
hypertension: headache; dizziness
diabetes mellitus: polyuria; weight loss
type 1 diabetes mellitus: polyuria; weight loss
type 2 diabetes mellitus: polyuria; fatigue
diabetic nephropathy: proteinuria
diabetic neuropathy: pain
anemia: fatigue; dizziness
iron deficiency anemia: fatigue
sickle cell anemia: pain; jaundice
pernicious anemia: fatigue; muscle weakness
dermatitis: pruritus
atopic dermatitis: pruritus
urticaria: pruritus
psoriasis: pruritus
anaphylaxis: hypotension; bronchospasm
peptic ulcer: abdominal pain; dyspepsia
duodenal ulcer: abdominal pain; hemorrhage
gastroesophageal reflux disease: heartburn
Crohn disease: diarrhea; abdominal pain; weight loss
ulcerative colitis: diarrhea; abdominal pain
irritable bowel syndrome: constipation; diarrhea
celiac disease: diarrhea; weight loss
hypothyroidism: fatigue; constipation
hyperthyroidism: weight loss; palpitations; tremor
Addison disease: hypotension; hyperkalemia
Cushing syndrome: hypokalemia; hypertension
influenza: fever; myalgia; sore throat
COVID-19: cough; fever; myalgia
Duchenne muscular dystrophy: muscle weakness
hemophilia A: hemorrhage
sepsis: hypotension; fever
meningitis: headache; fever
cholera: diarrhea; vomiting
onchocerciasis: pruritus
opioid overdose: bradycardia
lung carcinoma: hemoptysis; weight loss
prostate carcinoma: polyuria
scurvy: hemorrhage
"""

_ISA = """
asthma: lung disease
chronic obstructive pulmonary disease: lung disease
pneumonia: lung disease; infectious disease
tuberculosis: infectious disease
malaria: infectious disease
HIV infection: infectious disease
hepatitis B: liver disease; infectious disease
hepatitis C: liver disease; infectious disease
liver cirrhosis: liver disease
rheumatoid arthritis: arthritis
osteoarthritis: arthritis
gout: arthritis
ankylosing spondylitis: arthritis
heart failure: heart disease
congestive heart failure: heart failure
coronary artery disease: heart disease
myocardial infarction: heart disease
atrial fibrillation: cardiac arrhythmia
cardiac arrhythmia: heart disease
mitral stenosis: heart disease
aortic stenosis: heart disease
endocarditis: heart disease
type 1 diabetes mellitus: diabetes mellitus
type 2 diabetes mellitus: diabetes mellitus
iron deficiency anemia: anemia
sickle cell anemia: anemia
pernicious anemia: anemia
hypercholesterolemia: hyperlipidemia
atopic dermatitis: dermatitis
dermatitis: skin disease
psoriasis: skin disease
acne: skin disease
urticaria: skin disease
duodenal ulcer: peptic ulcer
Graves disease: hyperthyroidism
Addison disease: adrenal cortex disease
Cushing syndrome: adrenal cortex disease
diabetic nephropathy: kidney disease
chronic kidney disease: kidney disease
acute kidney injury: kidney disease
influenza: infectious disease
COVID-19: infectious disease
measles: infectious disease
poliomyelitis: infectious disease
cholera: infectious disease
leprosy: infectious disease
syphilis: infectious disease
gonorrhea: infectious disease
Lyme disease: infectious disease
candidiasis: infectious disease
aspergillosis: infectious disease
onchocerciasis: infectious disease
toxoplasmosis: infectious disease
breast carcinoma: malignant neoplasm
lung carcinoma: malignant neoplasm
non-small cell lung carcinoma: lung carcinoma
prostate carcinoma: malignant neoplasm
colorectal carcinoma: malignant neoplasm
melanoma: malignant neoplasm
ovarian carcinoma: malignant neoplasm
multiple myeloma: malignant neoplasm
Hodgkin disease: malignant neoplasm
diffuse large B-cell lymphoma: malignant neoplasm
chronic myeloid leukemia: malignant neoplasm
acute myeloid leukemia: malignant neoplasm
atorvastatin: statin
simvastatin: statin
pravastatin: statin
atenolol: beta blocker
metoprolol: beta blocker
propranolol: beta blocker
timolol: beta blocker
lisinopril: ACE inhibitor
captopril: ACE inhibitor
enalapril: ACE inhibitor
aspirin: nonsteroidal anti-inflammatory drug
ibuprofen: nonsteroidal anti-inflammatory drug
prednisone: glucocorticoid
dexamethasone: glucocorticoid
hydrocortisone: glucocorticoid
budesonide: glucocorticoid
fluticasone: glucocorticoid
amoxicillin: antibiotic
vancomycin: antibiotic
ciprofloxacin: antibiotic
azithromycin: antibiotic
erythromycin: antibiotic
doxycycline: antibiotic
rifampin: antibiotic
ceftriaxone: antibiotic
acyclovir: antiviral agent
oseltamivir: antiviral agent
zidovudine: antiviral agent
lamivudine: antiviral agent
cisplatin: antineoplastic agent
doxorubicin: antineoplastic agent
paclitaxel: antineoplastic agent
fluorouracil: antineoplastic agent
imatinib: antineoplastic agent
tamoxifen: antineoplastic agent
phenytoin: antiepileptic drug
valproate: antiepileptic drug
lamotrigine: antiepileptic drug
levetiracetam: antiepileptic drug
tacrolimus: immunosuppressant
cyclosporine: immunosuppressant
azathioprine: immunosuppressant
furosemide: diuretic
hydrochlorothiazide: diuretic
spironolactone: diuretic
warfarin: anticoagulant
heparin: anticoagulant
fluoxetine: antidepressant
sertraline: antidepressant
amitriptyline: antidepressant
chloroquine: antimalarial
quinine: antimalarial
artemether: antimalarial
morphine: opioid analgesic
codeine: opioid analgesic
albuterol: bronchodilator
salmeterol: bronchodilator
theophylline: bronchodilator
haloperidol: antipsychotic
clozapine: antipsychotic
glycerin: humectant
"""

_CONTRAINDICATED = """
aspirin: peptic ulcer; hemophilia A
ibuprofen: chronic kidney disease; peptic ulcer
acetaminophen: liver disease
metformin: lactic acidosis; acute kidney injury
warfarin: hemorrhage
heparin: hemorrhage
propranolol: asthma; bradycardia
atenolol: asthma
timolol: asthma; bradycardia
metoprolol: bradycardia
lisinopril: hyperkalemia
spironolactone: hyperkalemia
hydrochlorothiazide: gout
methotrexate: liver disease
isoniazid: liver disease
doxorubicin: heart failure
clozapine: bone marrow suppression
azathioprine: bone marrow suppression
sumatriptan: coronary artery disease
nitroglycerin: hypotension
insulin: hypoglycemia
glyburide: hypoglycemia
digoxin: hypokalemia
valproate: liver disease
amiodarone: hyperthyroidism
levodopa: melanoma
prednisone: osteoporosis
epinephrine: cardiac arrhythmia
"""

_MECHANISM = """
aspirin: cyclooxygenase inhibition
ibuprofen: cyclooxygenase inhibition
atorvastatin: HMG-CoA reductase inhibition
simvastatin: HMG-CoA reductase inhibition
pravastatin: HMG-CoA reductase inhibition
lisinopril: angiotensin-converting enzyme inhibition
captopril: angiotensin-converting enzyme inhibition
enalapril: angiotensin-converting enzyme inhibition
atenolol: beta-adrenergic blockade
metoprolol: beta-adrenergic blockade
propranolol: beta-adrenergic blockade
timolol: beta-adrenergic blockade
amlodipine: calcium channel blockade
nifedipine: calcium channel blockade
omeprazole: proton pump inhibition
tacrolimus: calcineurin inhibition
cyclosporine: calcineurin inhibition
albuterol: beta-2 adrenergic stimulation
salmeterol: beta-2 adrenergic stimulation
prednisone: glucocorticoid receptor activation
dexamethasone: glucocorticoid receptor activation
hydrocortisone: glucocorticoid receptor activation
budesonide: glucocorticoid receptor activation
fluticasone: glucocorticoid receptor activation
fluoxetine: serotonin reuptake inhibition
sertraline: serotonin reuptake inhibition
haloperidol: dopamine receptor blockade
clozapine: dopamine receptor blockade
morphine: opioid receptor activation
codeine: opioid receptor activation
methotrexate: dihydrofolate reductase inhibition
trimethoprim: dihydrofolate reductase inhibition
warfarin: vitamin K antagonism
amoxicillin: bacterial cell wall synthesis inhibition
vancomycin: bacterial cell wall synthesis inhibition
ceftriaxone: bacterial cell wall synthesis inhibition
benzathine penicillin: bacterial cell wall synthesis inhibition
azithromycin: bacterial protein synthesis inhibition
erythromycin: bacterial protein synthesis inhibition
doxycycline: bacterial protein synthesis inhibition
fluconazole: ergosterol synthesis inhibition
acyclovir: viral DNA polymerase inhibition
zidovudine: reverse transcriptase inhibition
lamivudine: reverse transcriptase inhibition
infliximab: tumor necrosis factor blockade
adalimumab: tumor necrosis factor blockade
imatinib: tyrosine kinase inhibition
paclitaxel: microtubule stabilization
cisplatin: DNA cross-linking
cyclophosphamide: DNA cross-linking
phenytoin: sodium channel blockade
lamotrigine: sodium channel blockade
allopurinol: xanthine oxidase inhibition
"""

_HAS_INGREDIENT = """
co-amoxiclav: amoxicillin; clavulanic acid
co-trimoxazole: trimethoprim; sulfamethoxazole
co-careldopa: levodopa; carbidopa
co-artem: artemether; lumefantrine
Seretide: fluticasone; salmeterol
Rifater: rifampin; isoniazid; pyrazinamide
Combivir: lamivudine; zidovudine
Zestoretic: lisinopril; hydrochlorothiazide
Tylenol with codeine: acetaminophen; codeine
"""

_GENE_OF = """
BRCA1 gene: breast carcinoma; ovarian carcinoma
BRCA2 gene: breast carcinoma; prostate carcinoma
ERBB2 gene: breast carcinoma
TP53 gene: malignant neoplasm
EGFR gene: non-small cell lung carcinoma
KRAS gene: colorectal carcinoma; non-small cell lung carcinoma
CFTR gene: cystic fibrosis
HTT gene: Huntington disease
APOE gene: Alzheimer disease; hypercholesterolemia
dystrophin gene: Duchenne muscular dystrophy
F8 gene: hemophilia A
FBN1 gene: Marfan syndrome
HBB gene: sickle cell anemia
BRAF gene: melanoma
LRRK2 gene: Parkinson disease
APP gene: Alzheimer disease
NOD2 gene: Crohn disease
BCR-ABL1 fusion gene: chronic myeloid leukemia
"""

RELATIONS = (
    Relation(name="may_treat", inverse="may_be_treated_by", phrase="may treat", table=_MAY_TREAT),
    Relation(name="may_prevent", inverse="may_be_prevented_by", phrase="may prevent", table=_MAY_PREVENT),
    Relation(name="may_diagnose", inverse="may_be_diagnosed_by", phrase="may diagnose", table=_MAY_DIAGNOSE),
    Relation(name="causative_agent_of", inverse="has_causative_agent", phrase="causes", table=_CAUSATIVE_AGENT_OF),
    Relation(name="has_finding_site", inverse="finding_site_of", phrase="is found in the", table=_HAS_FINDING_SITE),
    Relation(name="has_manifestation", inverse="manifestation_of", phrase="can show as", table=_HAS_MANIFESTATION),
    Relation(name="isa", inverse="inverse_isa", phrase="is a kind of", table=_ISA),
    Relation(
        name="contraindicated_with_disease",
        inverse="has_contraindicated_drug",
        phrase="must not be given in",
        table=_CONTRAINDICATED,
    ),
    Relation(name="has_mechanism_of_action", inverse="mechanism_of_action_of", phrase="acts by", table=_MECHANISM),
    Relation(name="has_ingredient", inverse="ingredient_of", phrase="contains", table=_HAS_INGREDIENT),
    Relation(
        name="gene_associated_with_disease",
        inverse="disease_has_associated_gene",
        phrase="is associated with",
        table=_GENE_OF,
    ),
)
