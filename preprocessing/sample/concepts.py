"""The concepts of the mini UMLS: real medicine, small enough to read.

One line per concept: CUI | preferred name | other names. CUIs are UMLS' own where known; one that begins with C99 is
made up. Names are written as in the middle of a sentence. No name belongs to two concepts, whatever its case, except
those in `AMBIGUOUS_NAMES`; the abstracts never use these.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

AMBIGUOUS_NAMES = frozenset({"HD", "MS"})
"""Abbreviations that several concepts share, as in real life: what a linker must not be too sure about."""


@dataclass(frozen=True, kw_only=True)
class SemanticType:
    """A UMLS semantic type with the concepts of the sample that have it."""

    tui: str
    name: str
    group: str
    """Short kind for PubTator files, such as "Disease"."""
    table: str
    """Lines "CUI | preferred name | other names"."""


@dataclass(frozen=True, kw_only=True)
class Concept:
    """One concept of the sample."""

    cui: str
    names: tuple[str, ...]
    """The preferred name comes first."""
    tui: str
    semantic_type: str
    group: str

    @property
    def preferred_name(self) -> str:
        """The name that MRCONSO marks with TS=P, STT=PF, ISPREF=Y."""
        return self.names[0]


@cache
def all_concepts() -> tuple[Concept, ...]:
    """All concepts, sorted by CUI."""
    concepts = []
    for kind in SEMANTIC_TYPES:
        for line in kind.table.strip().splitlines():
            cui, *names = (field.strip() for field in line.split(" | "))
            concepts.append(
                Concept(cui=cui, names=tuple(names), tui=kind.tui, semantic_type=kind.name, group=kind.group)
            )
    return tuple(sorted(concepts, key=lambda concept: concept.cui))


@cache
def concepts_by_name() -> dict[str, Concept]:
    """Lower-cased name -> concept, without the ambiguous names."""
    by_name: dict[str, Concept] = {}
    for concept in all_concepts():
        for name in concept.names:
            if name not in AMBIGUOUS_NAMES:
                assert name.lower() not in by_name, f"{name} names two concepts"
                by_name[name.lower()] = concept
    return by_name


_DISEASES = """
C0004096 | asthma | bronchial asthma | asthma bronchiale
C0024117 | chronic obstructive pulmonary disease | COPD | chronic airway obstruction
C0032285 | pneumonia | lung inflammation | pneumonitis
C0041296 | tuberculosis | TB | Koch disease
C0024530 | malaria | paludism | plasmodium infection
C0019693 | HIV infection | human immunodeficiency virus infection | infection with HIV
C0019163 | hepatitis B | viral hepatitis B | serum hepatitis
C0019196 | hepatitis C | viral hepatitis C | non-A non-B hepatitis
C0023890 | liver cirrhosis | cirrhosis | hepatic cirrhosis
C0023895 | liver disease | hepatic disease | hepatopathy
C0003873 | rheumatoid arthritis | atrophic arthritis | arthritis deformans
C0029408 | osteoarthritis | degenerative joint disease | osteoarthrosis
C0003864 | arthritis | joint inflammation | inflammatory joint disease
C0018099 | gout | gouty arthritis | podagra
C0029456 | osteoporosis | porous bone disease | bone loss disease
C0024141 | systemic lupus erythematosus | SLE | disseminated lupus
C0026769 | multiple sclerosis | disseminated sclerosis | MS
C9900001 | mitral stenosis | mitral valve stenosis | MS
C9900002 | aortic stenosis | aortic valve stenosis
C9900003 | ankylosing spondylitis | Bechterew disease
C0030567 | Parkinson disease | paralysis agitans | shaking palsy
C0002395 | Alzheimer disease | Alzheimer dementia | senile dementia of the Alzheimer type
C0014544 | epilepsy | seizure disorder | epileptic disorder
C0149931 | migraine | migraine disorder | hemicrania
C0018801 | heart failure | cardiac failure | myocardial failure
C0018802 | congestive heart failure | CHF | congestive cardiac failure
C0010054 | coronary artery disease | CAD | coronary atherosclerosis
C0027051 | myocardial infarction | heart attack | cardiac infarction
C0004238 | atrial fibrillation | AFib | auricular fibrillation
C0003811 | cardiac arrhythmia | heart rhythm disorder | dysrhythmia
C0018799 | heart disease | cardiac disease | cardiopathy
C0002962 | angina pectoris | stenocardia | anginal syndrome
C0004153 | atherosclerosis | atheromatosis | atherosclerotic disease
C0038454 | stroke | cerebrovascular accident | CVA | apoplexy
C0034065 | pulmonary embolism | lung embolism | pulmonary thromboembolism
C0149871 | deep vein thrombosis | DVT | deep venous thrombosis
C0020538 | hypertension | high blood pressure | hypertensive disease
C0020443 | hypercholesterolemia | high cholesterol | elevated cholesterol level
C0020473 | hyperlipidemia | lipidemia | excess lipids in blood
C0028754 | obesity | adiposity | corpulence
C0011849 | diabetes mellitus | diabetes | sugar disease
C0011860 | type 2 diabetes mellitus | T2DM | non-insulin-dependent diabetes mellitus | adult-onset diabetes
C0011854 | type 1 diabetes mellitus | T1DM | insulin-dependent diabetes mellitus | juvenile-onset diabetes
C0011884 | diabetic retinopathy | retinopathy of diabetes | diabetic retinal disease
C0011881 | diabetic nephropathy | diabetic kidney disease | Kimmelstiel-Wilson disease
C0011882 | diabetic neuropathy | diabetic nerve disease | neuropathy of diabetes
C0002871 | anemia | anaemia | low hemoglobin state
C0162316 | iron deficiency anemia | iron-deficient anemia | sideropenic anemia
C0002895 | sickle cell anemia | sickle cell disease | hemoglobin S disease
C0017601 | glaucoma | glaucomatous disease | glaucomatous optic damage
C0028840 | ocular hypertension | raised intraocular pressure | high eye pressure
C0086543 | cataract | lens opacity | clouded lens
C0033860 | psoriasis | psoriatic disease | plaque psoriasis
C0011603 | dermatitis | inflammation of skin | skin inflammation | inflammation
C0011615 | atopic dermatitis | atopic eczema | neurodermatitis
C0702166 | acne | acne vulgaris | common acne
C0042109 | urticaria | hives | nettle rash
C0037274 | skin disease | dermatosis | dermatologic disorder
C0002792 | anaphylaxis | anaphylactic shock | anaphylactic reaction
C2607914 | allergic rhinitis | hay fever | pollinosis
C0030920 | peptic ulcer | gastroduodenal ulcer | peptic ulcer disease
C0017168 | gastroesophageal reflux disease | GERD | acid reflux disease
C0010346 | Crohn disease | regional enteritis | granulomatous enteritis
C0009324 | ulcerative colitis | idiopathic proctocolitis | colitis gravis
C0022104 | irritable bowel syndrome | IBS | irritable colon
C0007570 | celiac disease | gluten enteropathy | celiac sprue
C0020676 | hypothyroidism | underactive thyroid | thyroid insufficiency
C0020550 | hyperthyroidism | overactive thyroid | thyrotoxicosis
C0018213 | Graves disease | Basedow disease | exophthalmic goiter
C0001403 | Addison disease | primary adrenal insufficiency | Addisonian syndrome
C0010481 | Cushing syndrome | hypercortisolism | hyperadrenocorticism
C0001614 | adrenal cortex disease | adrenocortical disease | adrenal cortical disorder
C0022658 | kidney disease | renal disease | nephropathy
C1561643 | chronic kidney disease | CKD | chronic renal disease
C0022660 | acute kidney injury | AKI | acute renal failure
C0042029 | urinary tract infection | UTI | urinary infection
C0021400 | influenza | grippe | flu
C5203670 | COVID-19 | coronavirus disease 2019 | SARS-CoV-2 infection
C0010674 | cystic fibrosis | mucoviscidosis | fibrocystic disease of pancreas
C0020179 | Huntington disease | Huntington chorea | hereditary chorea | HD
C0013264 | Duchenne muscular dystrophy | DMD | pseudohypertrophic muscular dystrophy
C0019069 | hemophilia A | classic hemophilia | factor VIII deficiency
C0024796 | Marfan syndrome | Marfan disease | arachnodactyly syndrome
C0243026 | sepsis | blood poisoning | septic syndrome
C0025289 | meningitis | meningeal inflammation | inflammation of the meninges
C0014118 | endocarditis | endocardial inflammation | inflammation of the endocardium
C0007642 | cellulitis | phlegmonous skin infection | diffuse infection of skin
C0039614 | tetanus | lockjaw | tetanic infection
C0025007 | measles | rubeola | morbilli
C0032371 | poliomyelitis | polio | infantile paralysis
C0008354 | cholera | vibrio cholera infection | Asiatic cholera
C0023343 | leprosy | Hansen disease | hanseniasis
C0039128 | syphilis | lues | treponemal disease
C0018081 | gonorrhea | gonococcal infection | gonorrhoea
C0024198 | Lyme disease | Lyme borreliosis | Borrelia infection
C0006840 | candidiasis | moniliasis | candida infection
C0004030 | aspergillosis | aspergillus infection | aspergillus disease
C0024115 | lung disease | pulmonary disease | disease of the lung
C0009450 | communicable disease | infectious disease | transmissible disease
C9900004 | organ rejection | graft rejection | transplant rejection
C9900005 | scurvy | vitamin C deficiency | scorbutus
C9900006 | rickets | vitamin D deficiency disease | rachitis
C9900007 | pernicious anemia | Addison-Biermer anemia | vitamin B12 deficiency anemia
C9900008 | neural tube defect | NTD | neural tube malformation
C9900009 | duodenal ulcer | ulcer of duodenum | duodenal ulceration
C9900010 | peripheral edema | swelling of the legs | dependent edema
C9900011 | opioid overdose | narcotic overdose | opioid poisoning
C9900012 | bacterial conjunctivitis | purulent conjunctivitis | bacterial pink eye
C9900013 | otitis media | middle ear infection | middle ear inflammation
C9900014 | herpes zoster | shingles | zona
C9900015 | herpes simplex | herpes simplex infection | HSV infection
C9900016 | onchocerciasis | river blindness | onchocercal filariasis
C9900017 | toxoplasmosis | toxoplasma infection | toxoplasmic infection
C9900018 | neonatal respiratory distress syndrome | hyaline membrane disease | NRDS
"""

_NEOPLASMS = """
C0006826 | malignant neoplasm | cancer | malignant tumor
C0678222 | breast carcinoma | breast cancer | carcinoma of breast
C0684249 | lung carcinoma | lung cancer | carcinoma of lung
C0007131 | non-small cell lung carcinoma | NSCLC | non-small cell lung cancer
C0600139 | prostate carcinoma | prostate cancer | carcinoma of prostate
C0009402 | colorectal carcinoma | colorectal cancer | carcinoma of the large bowel
C0025202 | melanoma | malignant melanoma | melanocarcinoma
C0023473 | chronic myeloid leukemia | CML | chronic myelogenous leukemia
C0023467 | acute myeloid leukemia | AML | acute myelogenous leukemia
C0019829 | Hodgkin disease | Hodgkin lymphoma | malignant lymphogranulomatosis | HD
C0026764 | multiple myeloma | plasma cell myeloma | myelomatosis
C9900019 | diffuse large B-cell lymphoma | DLBCL | large cell B lymphoma
C9900020 | ovarian carcinoma | ovarian cancer | carcinoma of ovary
"""

_MENTAL_DISORDERS = """
C0036341 | schizophrenia | schizophrenic disorder | dementia praecox
C0005586 | bipolar disorder | manic-depressive illness | bipolar affective disorder
C0011581 | depressive disorder | depression | clinical depression
C0003469 | anxiety disorder | pathological anxiety | anxious neurosis
C0917801 | insomnia | sleeplessness | disorder of initiating sleep
"""

_SYMPTOMS = """
C0015967 | fever | pyrexia | febrile response
C0010200 | cough | coughing | tussis
C0013404 | dyspnea | shortness of breath | breathlessness
C0027497 | nausea | queasiness | feeling sick
C0042963 | vomiting | emesis | throwing up
C0011991 | diarrhea | loose stools | diarrhoea
C0009806 | constipation | obstipation | costiveness
C0030193 | pain | painful sensation | dolor
C0018681 | headache | cephalalgia | head pain
C0008031 | chest pain | thoracic pain | retrosternal pain
C0015672 | fatigue | tiredness | lassitude
C0033774 | pruritus | itching | itch
C0013604 | edema | oedema | dropsy
C0012833 | dizziness | lightheadedness | giddiness
C0040822 | tremor | involuntary shaking | trembling
C0043144 | wheezing | wheeze | whistling respiration
C0022346 | jaundice | icterus | yellow discoloration of skin
C0043096 | weight loss | loss of weight | body weight decrease
C0000737 | abdominal pain | stomach ache | bellyache
C0003862 | arthralgia | joint pain | articular pain
C0231528 | myalgia | muscle pain | muscular soreness
C0019079 | hemoptysis | coughing up blood | spitting of blood
C0013395 | dyspepsia | indigestion | upset stomach
C0039070 | syncope | fainting | loss of consciousness
C0030252 | palpitations | pounding heartbeat | awareness of heartbeat
C9900021 | polyuria | excessive urination | increased urine volume
C9900022 | heartburn | pyrosis | burning behind the sternum
C9900023 | muscle weakness | loss of strength | muscular debility
C9900024 | memory loss | amnesia | forgetfulness
C9900025 | sore throat | pharyngeal pain | throat irritation
"""

_PATHOLOGIC_FUNCTIONS = """
C0019080 | hemorrhage | bleeding | haemorrhage
C0020649 | hypotension | low blood pressure | arterial hypotension
C0020615 | hypoglycemia | low blood glucose | low blood sugar
C0020621 | hypokalemia | low serum potassium | potassium depletion
C0020461 | hyperkalemia | high serum potassium | potassium excess
C0033687 | proteinuria | albuminuria | protein in urine
C9900026 | bradycardia | slow heart rate | slow pulse
C9900027 | lactic acidosis | lactacidosis | acidosis from lactate
C9900028 | bone marrow suppression | myelosuppression | marrow failure
C9900029 | bronchospasm | bronchial spasm | airway spasm
"""

_DRUGS = """
C0017861 | 1,2,3-Propanetriol | glycerin | glycerol | glycerine
C0004057 | aspirin | acetylsalicylic acid | ASA
C0020740 | ibuprofen | isobutylphenylpropionic acid | p-isobutylhydratropic acid
C0000970 | acetaminophen | paracetamol | APAP
C0025598 | metformin | dimethylbiguanide | 1,1-dimethylbiguanide
C0017628 | glyburide | glibenclamide | glybenclamide
C0043031 | warfarin | 4-hydroxycoumarin anticoagulant | coumafene
C0019134 | heparin | unfractionated heparin | heparinic acid
C0065374 | lisinopril | lysinopril | lisinopril dihydrate
C0006938 | captopril | D-3-mercapto-2-methylpropanoyl-L-proline | captoprilum
C0014025 | enalapril | enalapril maleate | enalaprilum
C0126174 | losartan | losartan potassium | DuP 753
C0004147 | atenolol | tenormine | atenololum
C0025859 | metoprolol | metoprolol tartrate | metoprololum
C0033497 | propranolol | propanolol | dexpropranolol racemate
C0051696 | amlodipine | amlodipine besylate | amlodipinum
C0028066 | nifedipine | fenigidin | nifedipinum
C0020261 | hydrochlorothiazide | HCTZ | dihydrochlorothiazide
C0016860 | furosemide | frusemide | fursemide
C0037982 | spironolactone | spirolactone | spironolactonum
C0012265 | digoxin | 12-beta-hydroxydigitoxin | lanoxine
C0002598 | amiodarone | amiodarone hydrochloride | amiodaronum
C0286651 | atorvastatin | atorvastatin calcium | atorvastatinum
C0074554 | simvastatin | synvinolin | MK-733
C0085542 | pravastatin | eptastatin | CS-514
C0001927 | albuterol | salbutamol | albuterol sulfate
C0082607 | fluticasone | fluticasone propionate | fluticasonum
C0054201 | budesonide | budesonidum | micronized budesonide
C0298130 | montelukast | montelukast sodium | MK-0476
C0039771 | theophylline | 1,3-dimethylxanthine | theophyllinum
C0032952 | prednisone | dehydrocortisone | delta-cortisone
C0011777 | dexamethasone | 9-fluoro-16-methylprednisolone | hexadecadrol
C0020268 | hydrocortisone | cortisol | compound F
C0025677 | methotrexate | MTX | amethopterin
C0020336 | hydroxychloroquine | oxychloroquine | hydroxychloroquine sulfate
C0666743 | infliximab | monoclonal antibody cA2 | infliximabum
C1122087 | adalimumab | monoclonal antibody D2E7 | adalimumabum
C0393022 | rituximab | IDEC-C2B8 | rituximabum
C0728747 | trastuzumab | anti-HER2 monoclonal antibody | rhuMAb HER2
C0935989 | imatinib | imatinib mesylate | STI-571
C0039286 | tamoxifen | tamoxifen citrate | ICI 46474
C0008838 | cisplatin | cis-diamminedichloroplatinum | CDDP
C0013089 | doxorubicin | adriamycine | 14-hydroxydaunomycin
C0144576 | paclitaxel | taxol A | paclitaxelum
C0016360 | fluorouracil | 5-fluorouracil | 5-FU
C0010583 | cyclophosphamide | cytophosphane | cyclophosphamidum
C0085149 | tacrolimus | FK506 | fujimycin
C0010592 | cyclosporine | ciclosporin | cyclosporin A
C0004482 | azathioprine | azothioprine | BW 57-322
C0042313 | vancomycin | vancomycin hydrochloride | vancomycinum
C0008809 | ciprofloxacin | ciprofloxacin hydrochloride | Bay q 3939
C0052796 | azithromycin | azitromycin | CP-62993
C0014806 | erythromycin | erythromycin A | erythromycinum
C0013090 | doxycycline | alpha-6-deoxyoxytetracycline | doxycyclinum
C0022209 | isoniazid | isonicotinic acid hydrazide | INH
C0035608 | rifampin | rifampicin | rifamycin AMP
C0014964 | ethambutol | ethambutol hydrochloride | ethambutolum
C0008269 | chloroquine | chlorochin | chloroquine phosphate
C0034417 | quinine | quinine sulfate | chinin
C0016277 | fluconazole | fluconazolum | UK-49858
C0002679 | amphotericin B | amphotericin | liposomal amphotericin B
C0001367 | acyclovir | aciclovir | acycloguanosine
C0874161 | oseltamivir | oseltamivir phosphate | GS 4104
C0043474 | zidovudine | azidothymidine | AZT
C0209738 | lamivudine | 3TC | 2'-deoxy-3'-thiacytidine
C0028978 | omeprazole | omeprazole magnesium | H 168/68
C0034665 | ranitidine | ranitidine hydrochloride | AH-19065
C0061851 | ondansetron | ondansetron hydrochloride | GR 38032F
C0016365 | fluoxetine | fluoxetine hydrochloride | LY-110140
C0074393 | sertraline | sertraline hydrochloride | CP-51974
C0002600 | amitriptyline | amitriptyline hydrochloride | amitriptylinum
C0023870 | lithium | lithium salt | lithium carbonate
C0009079 | clozapine | clozapinum | HF-1854
C0018546 | haloperidol | haloperidolum | R-1625
C0023570 | levodopa | L-dopa | L-3,4-dihydroxyphenylalanine
C0031507 | phenytoin | diphenylhydantoin | fenitoin
C0042291 | valproate | valproic acid | dipropylacetic acid
C0064636 | lamotrigine | lamotriginum | BW-430C
C0060926 | gabapentin | gabapentinum | 1-(aminomethyl)cyclohexaneacetic acid
C0012010 | diazepam | methyldiazepinone | diazepamum
C0026549 | morphine | morphia | morphinum
C0009214 | codeine | methylmorphine | N-methylmorphine
C0027358 | naloxone | N-allylnoroxymorphone | naloxone hydrochloride
C0075632 | sumatriptan | sumatriptan succinate | GR 43175
C0002144 | allopurinol | allopurinolum | 1H-pyrazolo-pyrimidin-4-ol
C0009262 | colchicine | colchicinum | colchicin
C0102118 | alendronate | alendronic acid | alendronate sodium
C0040165 | levothyroxine | L-thyroxine | thyroxine sodium
C0033511 | propylthiouracil | PTU | 6-propyl-2-thiouracil
C0040233 | timolol | timolol maleate | timololum
C0090306 | latanoprost | PhXA41 | latanoprostum
C0014582 | epinephrine | adrenaline | L-adrenaline
C0021641 | insulin | insulin hormone | regular insulin
C9900030 | clavulanic acid | clavulanate | clavulanate potassium
C9900031 | amoxicillin | amoxycillin | p-hydroxyampicillin
C9900032 | trimethoprim | trimethoprimum | BW 56-72
C9900033 | sulfamethoxazole | sulphamethoxazole | SMX
C9900034 | carbidopa | alpha-methyldopa hydrazine | carbidopum
C9900035 | pyrazinamide | pyrazinoic acid amide | PZA
C9900036 | artemether | dihydroartemisinin methyl ether | artemetherum
C9900037 | lumefantrine | benflumetol | lumefantrinum
C9900038 | levetiracetam | etiracetam S-isomer | ucb L059
C9900039 | donepezil | donepezil hydrochloride | E-2020
C9900040 | ivermectin | 22,23-dihydroavermectin | ivermectinum
C9900041 | bisacodyl | bisacodylum | phenolphthalein substitute LA96
C9900042 | loperamide | loperamide hydrochloride | R-18553
C9900043 | methimazole | thiamazole | 1-methylimidazole-2-thiol
C9900044 | clopidogrel | clopidogrel bisulfate | SR 25990C
C9900045 | salmeterol | salmeterol xinafoate | GR 33343
C9900046 | benzathine penicillin | penicillin G benzathine | benzathine benzylpenicillin
C9900047 | ceftriaxone | ceftriaxone sodium | Ro 13-9904
C9900048 | cetirizine | cetirizine dihydrochloride | P-071
C9900049 | nitroglycerin | glyceryl trinitrate | GTN
"""

_VITAMINS = """
C0016412 | folic acid | vitamin B9 | pteroylglutamic acid
C0042845 | vitamin B12 | cobalamin | cyanocobalamin
C0042866 | vitamin D | calciferol | antirachitic vitamin
C0003968 | ascorbic acid | vitamin C | L-ascorbate
"""

_PRODUCTS = """
C9900050 | co-amoxiclav | Augmentin | amoxicillin clavulanate tablet
C9900051 | co-trimoxazole | Bactrim | trimethoprim sulfamethoxazole tablet
C9900052 | co-careldopa | Sinemet | carbidopa levodopa tablet
C9900053 | co-artem | artemether lumefantrine tablet | Coartem
C9900054 | Seretide | Advair | fluticasone salmeterol inhaler
C9900055 | Rifater | rifampin isoniazid pyrazinamide tablet | three-drug antitubercular tablet
C9900056 | Combivir | lamivudine zidovudine tablet | AZT-3TC tablet
C9900057 | Zestoretic | lisinopril hydrochlorothiazide tablet | Prinzide
C9900058 | Tylenol with codeine | acetaminophen codeine tablet | co-codamol
"""

_MECHANISMS = """
C9900059 | cyclooxygenase inhibition | COX inhibition | inhibition of prostaglandin synthase
C9900060 | HMG-CoA reductase inhibition | inhibition of cholesterol synthesis | hydroxymethylglutaryl reductase blockade
C9900061 | angiotensin-converting enzyme inhibition | ACE inhibition | kininase II blockade
C9900062 | beta-adrenergic blockade | beta blockade | beta-adrenoceptor antagonism
C9900063 | calcium channel blockade | calcium antagonism | blockade of L-type channels
C9900064 | proton pump inhibition | inhibition of the gastric hydrogen pump | H+/K+-ATPase blockade
C9900065 | calcineurin inhibition | calcineurin blockade | inhibition of protein phosphatase 2B
C9900066 | beta-2 adrenergic stimulation | beta-2 receptor agonism | beta-2 adrenoceptor activation
C9900067 | glucocorticoid receptor activation | glucocorticoid receptor agonism | corticoid receptor stimulation
C9900068 | serotonin reuptake inhibition | serotonin uptake blockade | 5-HT transporter inhibition
C9900069 | dopamine receptor blockade | dopamine antagonism | D2 receptor antagonism
C9900070 | opioid receptor activation | mu receptor agonism | opioid receptor stimulation
C9900071 | dihydrofolate reductase inhibition | antifolate action | DHFR inhibition
C9900072 | vitamin K antagonism | vitamin K epoxide reductase blockade | coumarin effect
C9900073 | bacterial cell wall synthesis inhibition | peptidoglycan synthesis blockade | murein synthesis inhibition
C9900074 | bacterial protein synthesis inhibition | ribosomal blockade in bacteria | bacterial translation inhibition
C9900075 | ergosterol synthesis inhibition | lanosterol demethylase blockade | fungal sterol inhibition
C9900076 | viral DNA polymerase inhibition | viral polymerase blockade | inhibition of viral DNA synthesis
C9900077 | reverse transcriptase inhibition | reverse transcriptase blockade | RT inhibition
C9900078 | tumor necrosis factor blockade | TNF inhibition | anti-TNF action
C9900079 | tyrosine kinase inhibition | BCR-ABL blockade | kinase inhibitor action
C9900080 | microtubule stabilization | tubulin stabilization | mitotic spindle arrest
C9900081 | DNA cross-linking | DNA adduct formation | alkylation of DNA
C9900082 | sodium channel blockade | voltage-gated sodium channel inhibition | sodium current blockade
C9900083 | xanthine oxidase inhibition | xanthine oxidase blockade | inhibition of urate formation
"""

_ORGANS = """
C0023884 | liver | hepar | hepatic organ
C0018787 | heart | cor | cardiac organ
C0024109 | lung | pulmo | pulmonary organ
C0022646 | kidney | ren | renal organ
C0006104 | brain | encephalon | cerebral organ
C0038351 | stomach | gaster | ventriculus
C0030274 | pancreas | pancreatic gland | pancreatic organ
C0009368 | colon | large bowel | colonic segment
C0021852 | small intestine | small bowel | intestinum tenue
C1123023 | skin | cutis | integument
C0015392 | eye | oculus | ocular globe
C0005953 | bone marrow | medulla ossium | marrow
C0262950 | bone | skeletal bone | os
C0040132 | thyroid gland | thyroid | glandula thyroidea
C0001613 | adrenal cortex | adrenal cortical zone | cortex of suprarenal gland
C0033572 | prostate | prostate gland | prostatic gland
C0006141 | breast | mamma | mammary region
C0005682 | urinary bladder | bladder | vesica urinaria
C0014876 | esophagus | oesophagus | gullet
C0006255 | bronchus | bronchial tree | bronchial tube
C0022417 | joint | articulation | articular joint
C0003842 | artery | arterial vessel | arteria
C0042449 | vein | venous vessel | vena
C0037925 | spinal cord | medulla spinalis | spinal medulla
C0035298 | retina | retinal layer | tunica interna of the globe
C0025285 | meninges | meningeal membrane | coverings of the brain
C9900084 | ovary | ovarium | female gonad
C9900085 | skeletal muscle | striated muscle | voluntary muscle
C9900086 | nasal mucosa | nasal lining | mucous membrane of nose
"""

_GENES = """
C0376571 | BRCA1 gene | BRCA1 | breast cancer 1 gene
C0598034 | BRCA2 gene | BRCA2 | breast cancer 2 gene
C0242957 | ERBB2 gene | ERBB2 | HER2 gene
C9900087 | TP53 gene | TP53 | p53 tumor suppressor gene
C9900088 | EGFR gene | EGFR | ERBB1 gene
C9900089 | KRAS gene | KRAS | KRAS2 gene
C9900090 | CFTR gene | CFTR | ABCC7 gene
C9900091 | HTT gene | HTT | huntingtin gene
C9900092 | APOE gene | APOE | apolipoprotein E gene
C9900093 | dystrophin gene | DMD locus | Xp21 dystrophin locus
C9900094 | F8 gene | coagulation factor VIII gene | F8 locus
C9900095 | FBN1 gene | FBN1 | fibrillin 1 gene
C9900096 | HBB gene | HBB | beta globin gene
C9900097 | BRAF gene | BRAF | BRAF proto-oncogene
C9900098 | LRRK2 gene | LRRK2 | PARK8 gene
C9900099 | APP gene | amyloid precursor protein gene | AD1 gene
C9900100 | NOD2 gene | NOD2 | CARD15 gene
C9900101 | BCR-ABL1 fusion gene | BCR-ABL1 | Philadelphia fusion gene
"""

_PROTEINS = """
C1456820 | tumor necrosis factor alpha | TNF-alpha | cachectin
C0021760 | interleukin-6 | IL-6 | interferon beta-2
C0006560 | C-reactive protein | CRP | acute phase C protein
C0019018 | hemoglobin A1c | HbA1c | glycosylated hemoglobin A
C9900102 | prostate-specific antigen | PSA | kallikrein-3
C9900103 | cardiac troponin | troponin I | cardiac troponin I
C9900104 | D-dimer | fibrin fragment D | fibrin degradation dimer
C9900105 | rheumatoid factor | RF autoantibody | anti-IgG autoantibody
C9900106 | thyrotropin | TSH | thyroid-stimulating hormone
C9900107 | natriuretic peptide B | BNP | brain natriuretic peptide
"""

_CHEMICALS = """
C0001962 | ethanol | ethyl alcohol | grain alcohol
C0017725 | glucose | dextrose | D-glucose
C0008377 | cholesterol | cholesterin | cholest-5-en-3-ol
C0010294 | creatinine | 2-amino-1-methylimidazol-4-one | creatinine anhydride
C9900108 | uric acid | urate | 2,6,8-trioxypurine
C9900109 | bilirubin | bile pigment | hematoidin
C9900110 | nicotine | beta-pyridyl-alpha-N-methylpyrrolidine | tobacco alkaloid
C9900111 | benzo(a)pyrene | 3,4-benzopyrene | BaP
"""

_BACTERIA = """
C0026926 | Mycobacterium tuberculosis | tubercle bacillus | M. tuberculosis
C9900112 | Mycobacterium leprae | Hansen bacillus | M. leprae
C9900113 | Streptococcus pneumoniae | pneumococcus | S. pneumoniae
C0038172 | Staphylococcus aureus | golden staphylococcus | S. aureus
C0014834 | Escherichia coli | colon bacillus | E. coli
C0079488 | Helicobacter pylori | Campylobacter pylori | H. pylori
C9900114 | Neisseria meningitidis | meningococcus | N. meningitidis
C9900115 | Neisseria gonorrhoeae | gonococcus | N. gonorrhoeae
C9900116 | Borrelia burgdorferi | Lyme spirochete | B. burgdorferi
C9900117 | Treponema pallidum | syphilis spirochete | T. pallidum
C9900118 | Vibrio cholerae | comma bacillus | V. cholerae
C9900119 | Clostridium tetani | tetanus bacillus | C. tetani
C9900120 | Pseudomonas aeruginosa | blue pus bacillus | P. aeruginosa
"""

_VIRUSES = """
C0019682 | human immunodeficiency virus | HIV | AIDS virus
C0019169 | hepatitis B virus | HBV | Dane particle
C0220847 | hepatitis C virus | HCV | non-A non-B virus
C9900121 | influenza virus | influenzavirus A | flu virus
C9900122 | SARS-CoV-2 | 2019-nCoV | novel coronavirus 2019
C9900123 | measles virus | rubeola virus | Morbillivirus hominis
C9900124 | poliovirus | poliomyelitis virus | human enterovirus C
C9900125 | varicella-zoster virus | VZV | human herpesvirus 3
C9900126 | herpes simplex virus | HSV | human herpesvirus 1
"""

_PARASITES = """
C0032150 | Plasmodium falciparum | P. falciparum | falciparum parasite
C9900127 | Onchocerca volvulus | O. volvulus | blinding filaria
C9900128 | Toxoplasma gondii | T. gondii | toxoplasma protozoan
"""

_FUNGI = """
C9900129 | Candida albicans | C. albicans | thrush fungus
C9900130 | Aspergillus fumigatus | A. fumigatus | fumigatus mould
"""

_DIAGNOSTICS = """
C0024485 | magnetic resonance imaging | MRI | nuclear magnetic resonance imaging
C0040405 | computed tomography | CT scan | computerized tomography
C0013798 | electrocardiogram | ECG | electrocardiography
C0013516 | echocardiography | cardiac ultrasound | heart sonography
C0005558 | biopsy | tissue biopsy | excisional tissue sampling
C0009378 | colonoscopy | lower endoscopy | endoscopic examination of large bowel
C0013819 | electroencephalography | EEG | brain wave recording
C0024671 | mammography | breast radiography | mammogram
C9900131 | spirometry | pulmonary function test | bronchospirometry
C9900132 | tonometry | intraocular pressure measurement | eye pressure test
C9900133 | lumbar puncture | spinal tap | rachicentesis
C9900134 | bone densitometry | DXA scan | bone mineral density test
C9900135 | tuberculin skin test | Mantoux test | PPD skin test
C9900136 | urea breath test | carbon-13 breath test | UBT
C9900137 | gastroscopy | upper endoscopy | esophagogastroduodenoscopy
C9900138 | coronary angiography | coronary arteriography | cineangiography of the coronaries
C9900139 | skin prick test | epicutaneous allergy test | prick puncture test
C9900140 | fundoscopy | ophthalmoscopy | retinal examination
"""

_PROCEDURES = """
C0010055 | coronary artery bypass surgery | CABG | aortocoronary bypass
C0019004 | hemodialysis | renal dialysis | extracorporeal dialysis | HD
C9900141 | kidney transplantation | renal transplantation | kidney grafting
C0023911 | liver transplantation | hepatic transplantation | liver grafting
C9900142 | radiotherapy | radiation therapy | therapeutic irradiation
C9900143 | cataract extraction | lens removal | phacoemulsification
C9900144 | measles vaccination | measles immunization | rubeola vaccination
C9900145 | influenza vaccination | flu shot | influenza immunization
C9900146 | polio vaccination | poliomyelitis immunization | poliovirus immunization
C9900147 | tetanus vaccination | tetanus immunization | tetanus toxoid injection
C9900148 | phototherapy | light therapy | ultraviolet treatment
"""

_DRUG_CLASSES = """
C9900149 | statin | HMG-CoA reductase inhibitor drug | vastatin
C9900150 | beta blocker | beta-adrenergic blocking agent | beta-adrenoceptor antagonist drug
C9900151 | ACE inhibitor | angiotensin-converting enzyme inhibitor | kininase II inhibitor drug
C9900152 | nonsteroidal anti-inflammatory drug | NSAID | nonsteroidal antirheumatic agent
C9900153 | glucocorticoid | glucocorticosteroid | adrenal corticoid drug
C9900154 | antibiotic | antibacterial agent | bacteriocidal drug
C9900155 | antiviral agent | antiviral drug | virostatic
C9900156 | antineoplastic agent | anticancer drug | cytostatic
C9900157 | antiepileptic drug | anticonvulsant | seizure medication
C9900158 | immunosuppressant | immunosuppressive agent | antirejection drug
C9900159 | diuretic | water pill | diuretic agent
C9900160 | anticoagulant | blood thinner | anticoagulant agent
C9900161 | antidepressant | antidepressive agent | thymoleptic
C9900162 | antimalarial | antimalarial agent | antiplasmodial drug
C9900163 | opioid analgesic | narcotic analgesic | opiate drug
C9900164 | bronchodilator | bronchodilating agent | broncholytic drug
C9900165 | antipsychotic | neuroleptic | major tranquilizer
C9900166 | humectant | moisturizing agent | water-binding agent
"""

SEMANTIC_TYPES = (
    SemanticType(tui="T047", name="Disease or Syndrome", group="Disease", table=_DISEASES),
    SemanticType(tui="T191", name="Neoplastic Process", group="Disease", table=_NEOPLASMS),
    SemanticType(tui="T048", name="Mental or Behavioral Dysfunction", group="Disease", table=_MENTAL_DISORDERS),
    SemanticType(tui="T184", name="Sign or Symptom", group="Symptom", table=_SYMPTOMS),
    SemanticType(tui="T046", name="Pathologic Function", group="Disease", table=_PATHOLOGIC_FUNCTIONS),
    SemanticType(tui="T121", name="Pharmacologic Substance", group="Chemical", table=_DRUGS),
    SemanticType(tui="T127", name="Vitamin", group="Chemical", table=_VITAMINS),
    SemanticType(tui="T200", name="Clinical Drug", group="Chemical", table=_PRODUCTS),
    SemanticType(tui="T038", name="Biologic Function", group="Function", table=_MECHANISMS),
    SemanticType(tui="T023", name="Body Part, Organ, or Organ Component", group="Anatomy", table=_ORGANS),
    SemanticType(tui="T028", name="Gene or Genome", group="Gene", table=_GENES),
    SemanticType(tui="T116", name="Amino Acid, Peptide, or Protein", group="Protein", table=_PROTEINS),
    SemanticType(tui="T109", name="Organic Chemical", group="Chemical", table=_CHEMICALS),
    SemanticType(tui="T007", name="Bacterium", group="Organism", table=_BACTERIA),
    SemanticType(tui="T005", name="Virus", group="Organism", table=_VIRUSES),
    SemanticType(tui="T204", name="Eukaryote", group="Organism", table=_PARASITES),
    SemanticType(tui="T004", name="Fungus", group="Organism", table=_FUNGI),
    SemanticType(tui="T060", name="Diagnostic Procedure", group="Procedure", table=_DIAGNOSTICS),
    SemanticType(tui="T061", name="Therapeutic or Preventive Procedure", group="Procedure", table=_PROCEDURES),
    SemanticType(tui="T121", name="Pharmacologic Substance", group="Chemical", table=_DRUG_CLASSES),
)
